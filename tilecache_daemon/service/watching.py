"""Watches: copies of blocks that clients keep, and that the daemon keeps up to date.

A block that may have changed is read again and compared with its history. Each watch that
follows it is sent what is new to it: the changes since the version that it was sent last,
or the whole block. Nothing is replayed, so a watch that falls behind skips versions.

One publisher reads for all watches, on one connection. Re-reading changed blocks takes at most
a seventh of its time, and merges what changes meanwhile.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from tilecache.mercator import BlockKey, cells_of
from tilecache_daemon.cache.block_history import BlockHistories, BlockHistory
from tilecache_daemon.cache.blocks import split_blocks
from tilecache_daemon.cache.tile_cache import TileCache, TilePacker, pack_in_order
from tilecache_daemon.errors import ShuttingDownError, TileCacheError
from tilecache_daemon.read_priority import BUSY_S, PAUSE_S, ReadPriority
from tilecache_daemon.service.watch import OUTBOX_BYTES, Watch
from tilecache_daemon.store.change_feed import ChangeFeed
from tilecache_daemon.store.store import Store

BEAT_S: Final = 0.02
"""Changes within this time are merged."""
_REST_FACTOR: Final = 6
"""Changed blocks are not read again for so many times as long as the last reading took."""
RETRY_S: Final = 0.5
_READ_BYTES: Final = OUTBOX_BYTES
"""More at once would find no room in the outbox of a watch."""
_MAX_BLOCKS_PER_READ: Final = 32


@dataclass(frozen=True)
class BlockUpdate:
    """From one version of a block to the next."""

    key: BlockKey
    version: bytes
    base_version: bytes
    """Empty: the elements are all tiles of the block."""
    elements: list[bytes]
    removed: list[str]


class Packer(TilePacker, Protocol):
    """What watches need."""

    def pack_update(self, update: BlockUpdate) -> list[bytes]:
        """An update as elements of the field `blocks`: one, or parts of a large one."""


class WatchService:
    """All watches, and the publisher that reads for them."""

    def __init__(
        self,
        store: Store,
        changes: ChangeFeed,
        cache: TileCache,
        packer: Packer,
        read_priority: ReadPriority,
        history_max_bytes: int,
    ) -> None:
        self._store = store
        self._changes = changes
        self._packer = packer
        self._read_priority = read_priority
        self._histories = BlockHistories(history_max_bytes, cache.reserve)
        self._watches: set[Watch] = set()
        self._followers: dict[BlockKey, set[Watch]] = {}
        self._woken = asyncio.Event()
        self._rests_until = 0.0
        self._block_bytes = 0
        """Of the blocks that were read last, on average."""
        self._reading: set[BlockKey] = set()
        self._heard_again_at: dict[BlockKey, float] = {}
        """Blocks that changed while they were read, and when that was heard first."""
        self._ended = False
        changes.add_subscriber(self)

    @property
    def degraded(self) -> bool:
        """Whether changes may go unnoticed at present."""
        return not (self._changes.subscribed and self._store.available)

    @contextmanager
    def open(self) -> Iterator[Watch]:
        """A watch that follows nothing yet. Raises ShuttingDownError when the daemon stops."""
        if self._ended:
            raise ShuttingDownError("the daemon is shutting down")
        watch = Watch(self)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)
            self._unfollow(watch, watch.followed)

    async def end(self) -> None:
        """Ends all watches, and refuses further ones."""
        self._ended = True
        for watch in self._watches:
            watch.end()

    async def run(self) -> None:
        """Reads what has changed and what is new to a watch, until cancelled."""
        while True:
            changed, new = self._blocks_behind()
            try:
                if changed and _now() >= self._rests_until:
                    await self._read_changed(self._oldest_of_one_zoom(changed))
                elif new:
                    await self._publish(self._oldest_of_one_zoom(new))
                else:
                    await self._wait(self._rests_until - _now() if changed else None)
            except TileCacheError:
                # The watches stay: they are told of an outage by their heartbeats.
                await asyncio.sleep(RETRY_S)

    def blocks_changed(self, blocks: Collection[BlockKey], *, own_accesses: bool) -> None:
        """As `change_feed.Subscriber`. Watches do not carry accesses."""
        if own_accesses:
            return
        now = _now()
        for key in self._followers.keys() & blocks:
            for watch in self._followers[key]:
                watch.note_changed((key,), now)
            self.wake()
        self._note_heard_again(self._reading.intersection(blocks), now)

    def all_changed(self) -> None:
        """As `change_feed.Subscriber`."""
        now = _now()
        for watch in self._watches:
            watch.note_changed(None, now)
        self._note_heard_again(self._reading, now)
        self.wake()

    def subscription_changed(self, *, subscribed: bool) -> None:
        """As `change_feed.Subscriber`. Changes until now may have been missed."""
        if subscribed:
            self.all_changed()
        for watch in self._watches:
            watch.hasten_heartbeat()

    def confirmed_until(self, received_by: float) -> float | None:
        """As `ChangeFeed.confirmed_until`."""
        return self._changes.confirmed_until(received_by)

    def note_followed(
        self, watch: Watch, new: Iterable[BlockKey], dropped: Iterable[BlockKey]
    ) -> None:
        """A watch has changed what it follows."""
        self._unfollow(watch, dropped)
        for key in new:
            self._followers.setdefault(key, set()).add(watch)
        self.wake()

    def wake(self) -> None:
        """There may be something to read."""
        self._woken.set()

    def _note_heard_again(self, keys: Iterable[BlockKey], now: float) -> None:
        # Also without followers: they may come before the reading ends.
        for key in keys:
            self._heard_again_at.setdefault(key, now)

    def _unfollow(self, watch: Watch, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            followers = self._followers[key]
            followers.remove(watch)
            if not followers:
                del self._followers[key]

    def _blocks_behind(self) -> tuple[dict[BlockKey, float], dict[BlockKey, float]]:
        """The blocks that have changed, and those that are new to a watch, and since when."""
        changed: dict[BlockKey, float] = {}
        new: dict[BlockKey, float] = {}
        for watch in self._watches:
            for key, since in watch.behind.items():
                blocks = new if watch.is_new(key) else changed
                blocks[key] = min(since, blocks.get(key, since))
        return changed, new

    def _oldest_of_one_zoom(self, since: Mapping[BlockKey, float]) -> list[BlockKey]:
        """The blocks that have waited longest, as many as are read at once."""
        keys = sorted(since, key=since.__getitem__)
        most = min(_READ_BYTES // max(self._block_bytes, 1) or 1, _MAX_BLOCKS_PER_READ)
        return [key for key in keys if key.zoom == keys[0].zoom][:most]

    async def _wait(self, timeout_s: float | None) -> None:
        self._woken.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), timeout_s)

    async def _read_changed(self, keys: list[BlockKey]) -> None:
        began_at = _now()
        try:
            await self._publish(keys)
        finally:
            took_s = _now() - began_at
            self._rests_until = began_at + max(BEAT_S, (1 + _REST_FACTOR) * took_s)

    async def _publish(self, keys: list[BlockKey]) -> None:
        """Reads blocks, and delivers what is new in them."""
        await self._read_priority.wait_until_idle(BUSY_S, PAUSE_S)
        self._reading.update(keys)
        try:
            async with self._store.connection() as queries:
                tiles = await queries.tiles.read_blocks(keys[0].zoom, list(map(cells_of, keys)))
            ordered, elements = await pack_in_order(self._packer, tiles.without_accesses())
            self._block_bytes = sum(map(len, elements)) // len(keys)
            for block in split_blocks(keys, ordered, elements):
                # A block takes about a millisecond.
                await asyncio.sleep(0)
                ids = block.ids
                history = self._histories.update(block.key, ids, block.elements)
                updates = _Updates(block.key, ids, block.elements, history, self._packer)
                for watch in self._followers.get(block.key, ()):
                    watch.deliver(updates, self._heard_again_at.get(block.key))
        finally:
            self._reading.clear()
            self._heard_again_at.clear()


class _Updates:
    """The updates of a block that was read, from the versions that watches have. Those that
    have the same version share one."""

    def __init__(
        self,
        key: BlockKey,
        ids: list[bytes],
        elements: list[bytes],
        history: BlockHistory,
        packer: Packer,
    ) -> None:
        self.key = key
        self.version = history.version
        self._tiles = dict(zip(ids, elements, strict=True))
        self._history = history
        self._packer = packer
        self._packed: dict[bytes, list[bytes]] = {}

    def since(self, version: bytes) -> list[bytes]:
        """The wire form of the update from a version, in parts; of the whole block if that is
        not known."""
        if version not in self._packed:
            self._packed[version] = self._packer.pack_update(self._update(version))
        return self._packed[version]

    def _update(self, version: bytes) -> BlockUpdate:
        changes = self._history.changes_since(version)
        if changes is None or len(changes.put) == len(self._tiles):
            return BlockUpdate(self.key, self.version, b"", list(self._tiles.values()), [])
        put = [element for tile_uuid, element in self._tiles.items() if tile_uuid in changes.put]
        removed = sorted(str(UUID(bytes=tile_uuid)) for tile_uuid in changes.removed)
        return BlockUpdate(self.key, self.version, version, put, removed)


def _now() -> float:
    return asyncio.get_running_loop().time()
