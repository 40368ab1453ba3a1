// A peer in Node for test_node_peer.py:
//   node peer.mjs COMMAND '{"socket": ..., "protos": ..., "googleProtos": ..., "authority": ..., "request": ...}'
// prints what it learned as one JSON object. `protos` and `googleProtos` are include directories.
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'
import protobuf from 'protobufjs'
import { ReplicaState } from './replica_state.mjs'

const DEADLINE_MS = 20_000
const LOADING = { longs: Number, enums: String, oneofs: true }

const require = createRequire(import.meta.url)
const folderOf = (packageName) => dirname(require.resolve(`${packageName}/package.json`))
const [command, settings] = [process.argv[2], JSON.parse(process.argv[3])]

const commands = {
  async health () {
    const { Health } = load('health/v1/health.proto', join(folderOf('grpc-health-check'), 'proto')).grpc.health.v1
    const service = 'tilecache.v1.TileMetadataStore'
    return { status: (await call(connect(Health), 'check', { service })).status }
  },

  // Calls the store with no .proto at hand: what it serves is asked of the daemon itself.
  async reflection () {
    const services = (await reflect({ listServices: '' })).listServicesResponse.service
    const files = await reflect({ fileContainingSymbol: 'tilecache.v1.TileMetadataStore' })
    const descriptors = encodeFileSet(files.fileDescriptorResponse.fileDescriptorProto)
    const reflected = grpc.loadPackageDefinition(
      protoLoader.loadFileDescriptorSetFromBuffer(descriptors, LOADING)).tilecache.v1
    const info = await call(connect(reflected.TileMetadataStore), 'getServerInfo', {})
    return { services: services.map(({ name }) => name), info }
  },

  async info () {
    return await call(store(), 'getServerInfo', {})
  },

  async insert () {
    return await call(store(), 'insertTile', settings.request)
  },

  async query () {
    const stream = store().queryTiles(settings.request, { deadline: deadline() })
    const tiles = []
    for await (const chunk of stream) tiles.push(...chunk.tiles)
    return { tiles }
  },

  // Follows a rectangle of cells; prints what is held after each message, until its input ends.
  async follow () {
    const { zoom, cells } = settings
    const state = new ReplicaState()
    const stream = store().watchTiles({ deadline: deadline() })
    const areas = [{ zoom, region: { cellRange: cells } }]
    const send = ({ number, held }) => stream.write({ number, areas, held: Object.entries(held).map(encodeHeld) })
    state.follow(blocksOf(zoom, cells))
    send(state.reconnect(now()))
    process.stdin.on('end', () => stream.cancel()).resume()
    try {
      for await (const message of stream) {
        const requests = receive(state, message, now())
        requests.forEach(send)
        const tiles = [...state.blocks.values()].flatMap(({ tiles }) => [...tiles.values()])
        console.log(JSON.stringify({ synced: state.synced, degraded: state.degraded, ageS: now() - state.confirmedAt, tiles }))
      }
    } catch (error) {
      if (error.code !== grpc.status.CANCELLED) throw error
    }
    return {}
  },

  async error () {
    try {
      await call(store(), 'insertTile', settings.request)
    } catch (error) {
      return { code: grpc.status[error.code], details: decodeDetails(error.metadata) }
    }
    throw new Error('the call succeeded')
  }
}

// Takes in a message of WatchTiles; gives the requests that are to be sent.
function receive (state, { number, blocks = [], synced, heartbeat }, receivedAt) {
  const requests = blocks.map(block => state.apply(number, decodeUpdate(block)).request).filter(Boolean)
  if (synced) state.noteSynced(number)
  if (heartbeat) {
    const { ageMs, degraded = false, elapsedMs = 0 } = heartbeat
    state.noteHeartbeat({ ageMs, degraded, elapsedMs }, receivedAt)
  }
  return requests
}

function decodeUpdate ({ zoom = 0, blockX = 0, blockY = 0, version, baseVersion, tiles, removedTileUuids, isPartial }) {
  return {
    key: `${zoom}/${blockX}/${blockY}`,
    version: version.toString('hex'),
    baseVersion: baseVersion?.toString('hex') ?? '',
    tiles: tiles ?? [],
    removed: removedTileUuids ?? [],
    isPartial: isPartial ?? false
  }
}

function encodeHeld ([key, version]) {
  const [zoom, blockX, blockY] = key.split('/').map(Number)
  return { zoom, blockX, blockY, version: Buffer.from(version, 'hex') }
}

function blocksOf (zoom, { xFrom, xTo, yFrom, yTo }) {
  const keys = []
  for (let x = xFrom >> 5; x <= xTo >> 5; x++) {
    for (let y = yFrom >> 5; y <= yTo >> 5; y++) keys.push(`${zoom}/${x}/${y}`)
  }
  return keys
}

// Seconds by a monotonic clock.
function now () {
  return performance.now() / 1000
}

function connect (Client) {
  const options = {
    'grpc.keepalive_time_ms': 10_000,
    'grpc.keepalive_timeout_ms': 20_000,
    ...(settings.authority && { 'grpc.default_authority': settings.authority })
  }
  return new Client(`unix:${settings.socket}`, grpc.credentials.createInsecure(), options)
}

function store () {
  return connect(load('tilecache/v1/tile_metadata_store.proto', settings.protos).tilecache.v1.TileMetadataStore)
}

function load (file, folder) {
  return grpc.loadPackageDefinition(protoLoader.loadSync(file, { ...LOADING, includeDirs: [folder] }))
}

function deadline () {
  return Date.now() + DEADLINE_MS
}

function call (client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: deadline() }, (error, answer) => error ? reject(error) : resolve(answer))
  })
}

async function reflect (request) {
  const folder = join(folderOf('@grpc/reflection'), 'build', 'proto')
  const { ServerReflection } = load('grpc/reflection/v1alpha/reflection.proto', folder).grpc.reflection.v1alpha
  const stream = connect(ServerReflection).serverReflectionInfo({ deadline: deadline() })
  stream.write(request)
  stream.end()
  for await (const answer of stream) return answer
}

// FileDescriptorSet: field 1, repeated, each a FileDescriptorProto.
function encodeFileSet (files) {
  const writer = protobuf.Writer.create()
  for (const file of files) writer.uint32(10).bytes(file)
  return Buffer.from(writer.finish())
}

function decodeDetails (metadata) {
  const root = new protobuf.Root()
  root.resolvePath = (_, target) => join(settings.googleProtos, target)
  root.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'])
  const [trailer] = metadata.get('grpc-status-details-bin')
  const status = root.lookupType('google.rpc.Status').decode(trailer)
  return Object.fromEntries(status.details.map(({ type_url: url, value }) => {
    const type = root.lookupType(url.split('/').pop())
    return [type.name, type.toObject(type.decode(value))]
  }))
}

console.log(JSON.stringify(await commands[command]()))
