"""One stream of a client that keeps a copy of some blocks: what it follows, and what is to be
sent on it."""

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from math import inf
from typing import Final, NamedTuple, Protocol

from tilecache.errors import FieldViolation
from tilecache.mercator import BlockKey
from tilecache_daemon.errors import InvalidRequestError, ShuttingDownError

HEARTBEAT_S: Final = 1.0
MESSAGE_BYTES: Final = 256 * 1024
OUTBOX_BYTES: Final = 1024 * 1024
"""A watch with more unsent bytes is sent nothing new. So it holds at most what one reading
adds to this."""


class Source(Protocol):
    """What a watch asks of its service."""

    @property
    def degraded(self) -> bool:
        """Whether changes may go unnoticed at present."""

    def confirmed_until(self, received_by: float) -> float | None:
        """As `ChangeFeed.confirmed_until`."""

    def note_followed(
        self, watch: "Watch", new: Iterable[BlockKey], dropped: Iterable[BlockKey]
    ) -> None:
        """A watch has changed what it follows."""

    def wake(self) -> None:
        """There may be something to read."""


class Updates(Protocol):
    """What is new in a block that was read."""

    key: BlockKey
    version: bytes

    def since(self, version: bytes) -> list[bytes]:
        """The wire form of the update from a version, in parts; of the whole block if that is
        not known."""


class Heartbeat(NamedTuple):
    """How true the blocks are that were sent, as in the contract."""

    age_ms: int | None
    degraded: bool
    elapsed_ms: int


class Message(NamedTuple):
    """What is sent at once."""

    number: int
    blocks: list[bytes]
    synced: bool
    heartbeat: Heartbeat | None


class _Unsent(NamedTuple):
    """A part of an update; without a key the mark that all is sent."""

    key: BlockKey | None
    data: bytes
    since: float
    """When the daemon heard of the oldest change in it; never for a block that the client does
    not hold yet."""


class Watch:
    """One stream: what it follows, and what is to be sent on it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._number = 0
        self._versions: dict[BlockKey, bytes] = {}
        """What was sent last, or what the client says that it holds; empty if nothing."""
        self._behind: dict[BlockKey, float] = {}
        """Blocks that are to be read, and since when, by the event loop's clock."""
        self._unsynced: set[BlockKey] = set()
        """Blocks that were neither sent nor compared since the client named them."""
        self._outbox: deque[_Unsent] = deque()
        self._outbox_bytes = 0
        self._woken = asyncio.Event()
        self._began_at = self._heartbeat_at = _now()
        self._confirmed_until: float | None = None
        self._ended = False

    @property
    def followed(self) -> Collection[BlockKey]:
        """The blocks that are followed."""
        return self._versions.keys()

    @property
    def behind(self) -> Mapping[BlockKey, float]:
        """Blocks that are to be read, and since when; none while too much is unsent."""
        return self._behind if self._outbox_bytes < OUTBOX_BYTES else {}

    def is_new(self, key: BlockKey) -> bool:
        """Whether a block was neither sent nor compared since the client named it."""
        return key in self._unsynced

    def follow(
        self, number: int, keys: Collection[BlockKey], held: Mapping[BlockKey, bytes]
    ) -> None:
        """Follows these blocks and no others. Of those in `held`, the client has a version, or
        wants them anew. Raises InvalidRequestError if the number is not a later one."""
        if number <= self._number:
            raise InvalidRequestError(
                FieldViolation("number", f"is {number}, must be more than {self._number}")
            )
        self._number = number
        followed = set(keys)
        dropped = self._versions.keys() - followed
        for key in dropped:
            del self._versions[key]
            self._behind.pop(key, None)
        # A mark is for the number before; a dropped block may be followed again later, and must
        # then not be sent in an older version. Of a block that is wanted anew, the client does
        # not have the parts before the unsent ones.
        kept = followed - held.keys()
        self._outbox = deque(unsent for unsent in self._outbox if unsent.key in kept)
        self._outbox_bytes = sum(len(unsent.data) for unsent in self._outbox)
        self._unsynced &= followed
        new = (followed - self._versions.keys()) | (held.keys() & followed)
        now = _now()
        for key in new:
            self._versions[key] = held.get(key, b"")
            self._behind[key] = now
        self._unsynced |= new
        self._source.note_followed(self, new, dropped)
        self._note_synced()

    def note_changed(self, keys: Iterable[BlockKey] | None, now: float) -> None:
        """These followed blocks may have changed; None for all."""
        for key in self._versions if keys is None else keys:
            self._behind.setdefault(key, now)

    def deliver(self, updates: Updates, heard_again_at: float | None) -> None:
        """Queues what is new to this watch in a block that was read. `heard_again_at` if it has
        changed since the reading began."""
        key = updates.key
        sent_version = self._versions[key]
        if sent_version != updates.version:
            if self._outbox_bytes >= OUTBOX_BYTES:
                return
            since = self._behind.get(key, inf) if sent_version else inf
            for data in updates.since(sent_version):
                self._outbox.append(_Unsent(key, data, since))
                self._outbox_bytes += len(data)
            self._versions[key] = updates.version
        if heard_again_at is None:
            self._behind.pop(key, None)
        else:
            self._behind[key] = heard_again_at
        if key in self._unsynced:
            self._unsynced.remove(key)
            self._note_synced()
        self.wake()

    async def next_message(self) -> Message | None:
        """What is to be sent next; None after `wake`, if there is nothing. Raises
        ShuttingDownError when the daemon stops."""
        if not self._outbox and not self._ended:
            self._woken.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._heartbeat_at - _now())
        if self._ended:
            raise ShuttingDownError("the daemon is shutting down")
        blocks, synced = self._take_blocks()
        heartbeat = self._take_heartbeat()
        if not (blocks or synced or heartbeat):
            return None
        return Message(self._number, blocks, synced, heartbeat)

    def hasten_heartbeat(self) -> None:
        """Sends a heartbeat now."""
        self._heartbeat_at = _now()
        self.wake()

    def wake(self) -> None:
        """Makes `next_message` return."""
        self._woken.set()

    def end(self) -> None:
        """Makes `next_message` raise ShuttingDownError."""
        self._ended = True
        self.wake()

    def _note_synced(self) -> None:
        if not self._unsynced and self._number:
            self._outbox.append(_Unsent(None, b"", inf))
            self.wake()

    def _take_blocks(self) -> tuple[list[bytes], bool]:
        blocks: list[bytes] = []
        byte_count, synced = 0, False
        while self._outbox and byte_count < MESSAGE_BYTES:
            unsent = self._outbox.popleft()
            if unsent.key is None:
                synced = True
                # So that the client knows at once how old it all is.
                self._heartbeat_at = _now()
                break
            blocks.append(unsent.data)
            byte_count += len(unsent.data)
        was_full = self._outbox_bytes >= OUTBOX_BYTES
        self._outbox_bytes -= byte_count
        if was_full:
            self._source.wake()
        return blocks, synced

    def _take_heartbeat(self) -> Heartbeat | None:
        now = _now()
        if now < self._heartbeat_at:
            return None
        self._heartbeat_at = now + HEARTBEAT_S
        age_ms = None
        # Before the first request it is not known what the client holds.
        if self._number and not any(self._versions[key] for key in self._unsynced):
            unsent_since = min(
                chain(
                    (since for key, since in self._behind.items() if self._versions[key]),
                    (unsent.since for unsent in self._outbox),
                ),
                default=inf,
            )
            confirmed_until = self._source.confirmed_until(min(unsent_since, now))
            if confirmed_until is not None:
                self._confirmed_until = confirmed_until
            if self._confirmed_until is not None:
                age_ms = round((now - self._confirmed_until) * 1000)
        return Heartbeat(age_ms, self._source.degraded, round((now - self._began_at) * 1000))


def _now() -> float:
    return asyncio.get_running_loop().time()
