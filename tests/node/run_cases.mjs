// Runs ReplicaState for test_replica_state.py: reads tests/replica/cases.json from its input, and prints for each
// case what was done in each step, and what is held after it.
import { readFileSync } from 'node:fs'
import { ReplicaState } from './replica_state.mjs'

function perform (state, step) {
  const [requests, changed] = [[], new Set()]
  if (step.follow) requests.push(state.follow(step.follow))
  if (step.reconnect_at_s !== undefined) requests.push(state.reconnect(step.reconnect_at_s))
  if (step.disconnect) state.disconnect()
  const { number, blocks = [], synced, heartbeat } = step.message ?? {}
  for (const block of blocks) {
    const done = state.apply(number, {
      key: block.block,
      version: block.version,
      baseVersion: block.base ?? '',
      tiles: (block.tiles ?? []).map(parseTile),
      removed: block.removed ?? [],
      isPartial: block.partial ?? false
    })
    if (done.changed) changed.add(block.block)
    if (done.request) requests.push(done.request)
  }
  if (synced) state.noteSynced(number)
  if (heartbeat) {
    state.noteHeartbeat({
      ageMs: heartbeat.age_ms, degraded: heartbeat.degraded ?? false, elapsedMs: heartbeat.elapsed_ms
    }, step.received_at_s)
  }
  return {
    requests,
    changed: [...changed].sort(),
    held: Object.fromEntries([...state.blocks].map(([key, { version, tiles }]) => [key, { version, ...lists(tiles) }])),
    synced: state.synced,
    degraded: state.degraded,
    confirmed_at_s: state.confirmedAt
  }
}

function parseTile (text) {
  const [, tileUuid, x, y, rank] = /^(\w+)@(\d+),(\d+)(?::(\d+))?/.exec(text)
  return { text, tileUuid, order: [Number(y), Number(x), Number(rank ?? 0)] }
}

function lists (tiles) {
  const texts = [...tiles.values()].sort(compare).map(({ text }) => text)
  return { tiles: texts, usable: texts.filter(text => !text.includes('!')) }
}

// By cell, then the best tile first, then by id.
function compare (a, b) {
  const index = a.order.findIndex((value, index) => value !== b.order[index])
  return index < 0 ? (a.tileUuid < b.tileUuid ? -1 : 1) : a.order[index] - b.order[index]
}

const { cases } = JSON.parse(readFileSync(0, 'utf8'))
console.log(JSON.stringify(cases.map(({ steps }) => {
  const state = new ReplicaState()
  return steps.map(step => perform(state, step))
})))
