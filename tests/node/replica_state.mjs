// What messages of WatchTiles do to what a replica holds: "The protocol of WatchTiles" of docs/contract.md,
// step by step. A block is 'zoom/block_x/block_y', a version is any text, a tile has a `tileUuid`. Times are
// seconds by a monotonic clock.
export class ReplicaState {
  blocks = new Map() // each with its version, and its tiles by id
  synced = false
  degraded = true
  confirmedAt = null
  #number = 0
  #followedSince = new Map()
  #parts = new Map()
  #beganAt = Infinity

  // 1. Follows these blocks, and forgets others.
  follow (keys) {
    this.#number++
    for (const key of this.#followedSince.keys()) {
      if (keys.includes(key)) continue
      for (const map of [this.#followedSince, this.#parts, this.blocks]) map.delete(key)
    }
    for (const key of keys) {
      if (!this.#followedSince.has(key)) this.#followedSince.set(key, this.#number)
    }
    this.synced = false
    return { number: this.#number, held: {} }
  }

  // 2. A new stream is told what is held.
  reconnect (openedAt) {
    this.#number++
    this.#parts.clear()
    this.#beganAt = openedAt
    this.synced = false
    const held = Object.fromEntries([...this.blocks].map(([key, { version }]) => [key, version]))
    return { number: this.#number, held }
  }

  disconnect () {
    this.synced = false
    this.degraded = true
  }

  // Gives whether the block has changed, and the request that is to be sent if it is wanted anew.
  apply (number, { key, version, baseVersion, tiles, removed, isPartial }) {
    // 3.
    if (!(number >= this.#followedSince.get(key))) return { changed: false }
    // 4.
    const parts = [...(this.#parts.get(key) ?? []), { tiles, removed }]
    this.#parts.delete(key)
    if (isPartial) {
      this.#parts.set(key, parts)
      return { changed: false }
    }
    const base = this.blocks.get(key)
    let held = new Map() // 5.
    if (baseVersion) {
      // 6.
      if (base?.version !== baseVersion) return { changed: true, request: this.#askAnew(key) }
      held = new Map(base.tiles)
      for (const tileUuid of parts.flatMap(({ removed }) => removed)) held.delete(tileUuid)
    }
    for (const tile of parts.flatMap(({ tiles }) => tiles)) held.set(tile.tileUuid, tile)
    this.blocks.set(key, { version, tiles: held })
    return { changed: true }
  }

  // 7.
  noteSynced (number) {
    if (number === this.#number) this.synced = true
  }

  // 8.
  noteHeartbeat ({ ageMs, degraded, elapsedMs }, receivedAt) {
    this.degraded = degraded
    this.#beganAt = Math.min(this.#beganAt, receivedAt - elapsedMs / 1000)
    if (ageMs !== undefined) this.confirmedAt = this.#beganAt + (elapsedMs - ageMs) / 1000
  }

  #askAnew (key) {
    this.blocks.delete(key)
    this.#number++
    this.#followedSince.set(key, this.#number)
    this.synced = false
    return { number: this.#number, held: { [key]: '' } }
  }
}
