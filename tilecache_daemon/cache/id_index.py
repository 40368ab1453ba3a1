"""Where tiles are held, by id: a hash table made of arrays, so that many ids are looked up
at once, each at the cost of the memory that it touches. A dict of as many takes twice the
memory, and several times as long.

A bucket has room for eight ids, of which eight bytes each fill a line of the processor's
cache; an id whose bucket is full goes into the next. Those eight bytes find an id, the
others prove it: of two that begin alike only the last is found.
"""

import mmap
import secrets
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecache_daemon.store.tile_ids import Numbers

Slots = NDArray[np.int64]

NOWHERE: Final = 0
"""The holder of what is not held."""
_ROOM: Final = 8
_FIRST_BUCKETS: Final = 1 << 7
_FULL_ENOUGH: Final = 0.6
_BUCKETS_A_STEP: Final = 128
_ENTRY_NUMBERS: Final = 3
_WORD: Final = (1 << 64) - 1
_HALF: Final = np.uint64(32)
_HALF_MASK: Final = np.uint64((1 << 32) - 1)


class Spans(NamedTuple):
    """For each of some tiles its holder, and from which byte to which of the holder's bytes
    it reaches."""

    holders: Numbers
    starts: Numbers
    ends: Numbers

    @classmethod
    def following(cls, holder: int, ends: NDArray[Any]) -> "Spans":
        """Of tiles that follow each other in a holder's bytes."""
        until = ends.astype(np.uint64)
        starts = np.concatenate((np.zeros(1, dtype=np.uint64), until[:-1]))[: len(until)]
        return cls(np.full(len(until), holder, dtype=np.uint64), starts, until)

    def take(self, places: Any) -> "Spans":
        """Those at some places."""
        return Spans(*(column[places] for column in self))


class IdIndex:
    """Spans of ids. It grows in steps: `grow` does one, and is due while `growing`."""

    def __init__(self) -> None:
        self._tables = [_Table(_FIRST_BUCKETS)]
        """The newest first; the ids of an older one are on their way into it."""

    @property
    def growing(self) -> bool:
        return len(self._tables) > 1

    def grow(self) -> None:
        """Moves some ids from the oldest table to the newest."""
        oldest = self._tables[-1]
        ids, moved = oldest.take_some()
        is_new = self._tables[0].find(ids).holders == NOWHERE
        self._tables[0].put(ids[is_new], moved.take(is_new))
        if oldest.is_taken:
            self._tables.pop()

    def put(self, ids: Numbers, spans: Spans) -> None:
        """Spans of distinct ids, in the place of those that they had."""
        if not self._tables[0].has_room_for(len(ids)):
            self._tables.insert(0, self._tables[0].larger(len(ids)))
        self._tables[0].put(ids, spans)

    def discard(self, ids: Numbers, holder: int) -> None:
        """Forgets those ids that this holder holds."""
        for table in self._tables:
            table.discard(ids, holder)

    def find(self, ids: Numbers) -> Spans:
        """The spans of ids, with NOWHERE as holder of those that are not held."""
        found = self._tables[0].find(ids)
        for table in self._tables[1:]:
            missing = np.flatnonzero(found.holders == NOWHERE)
            for column, older in zip(found, table.find(ids[missing]), strict=True):
                column[missing] = older
        return found

    def find_one(self, tile_uuid: str) -> tuple[int, int, int] | None:
        """Holder, start and end of one id's span, in a fraction of the time of `find`."""
        number = int.from_bytes(bytes.fromhex(tile_uuid.replace("-", "")), "little")
        for table in self._tables:
            if span := table.find_one(number & _WORD, number >> 64):
                return span
        return None


class _Table:
    """A bucket is a row of each array."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self._shift = 65 - buckets.bit_length()
        # Ids are made of what clients choose: nobody may be able to choose a bucket.
        self._factor = secrets.randbits(64) | 1
        self._keys = _zeros(buckets, _ROOM)
        self._entries = _zeros(buckets * _ROOM, _ENTRY_NUMBERS)
        """The rest of the id, the holder, and start and end in one number."""
        self._key_view, self._entry_view = map(_view, (self._keys, self._entries))
        self._overflowed = np.zeros(buckets, dtype=np.bool_)
        """Whether an id of the bucket may be in the next."""
        self._count = 0
        self._taken = 0

    @property
    def is_taken(self) -> bool:
        return self._taken >= self._buckets

    def has_room_for(self, count: int) -> bool:
        return self._count + count <= self._buckets * _ROOM * _FULL_ENOUGH

    def larger(self, count: int) -> "_Table":
        """An empty one for its ids and so many more."""
        buckets = self._buckets * 2
        while self._count + count > buckets * _ROOM * _FULL_ENOUGH:
            buckets *= 2
        return _Table(buckets)

    def find(self, ids: Numbers) -> Spans:
        slots = self._locate(ids[:, 0])
        proofs, holders, reaches = self._entries.take(slots, axis=0).T
        found = (slots >= 0) & (proofs == ids[:, 1])
        return Spans(np.where(found, holders, NOWHERE), reaches >> _HALF, reaches & _HALF_MASK)

    def find_one(self, key: int, proof: int) -> tuple[int, int, int] | None:
        # Views, because a single number costs less from them than from an array.
        slot = ((key * self._factor & _WORD) >> self._shift) * _ROOM
        while key not in (keys := self._key_view[slot : slot + _ROOM].tolist()):
            if not self._overflowed[slot // _ROOM]:
                return None
            slot = (slot + _ROOM) % (self._buckets * _ROOM)
        entry = (slot + keys.index(key)) * _ENTRY_NUMBERS
        found, holder, reach = self._entry_view[entry : entry + _ENTRY_NUMBERS].tolist()
        return (holder, reach >> 32, reach & 0xFFFF_FFFF) if found == proof else None

    def put(self, ids: Numbers, spans: Spans) -> None:
        """There must be room."""
        slots = self._locate(ids[:, 0])
        left = np.flatnonzero(slots < 0)
        self._count += len(left)
        wanted = self._home(ids[left, 0])
        while len(left):
            free = self._keys[wanted] == 0
            is_free = free.any(axis=1)
            self._overflowed[wanted[~is_free]] = True
            offers = np.where(is_free, wanted * _ROOM + free.argmax(axis=1), -1)
            # Of those that are offered the same place one has it.
            is_placed = np.zeros(len(left), dtype=np.bool_)
            is_placed[np.unique(offers, return_index=True)[1]] = True
            is_placed &= is_free
            slots[left[is_placed]] = offers[is_placed]
            self._keys.ravel()[offers[is_placed]] = ids[left[is_placed], 0]
            wanted = np.where(is_free, wanted, (wanted + 1) % self._buckets)[~is_placed]
            left = left[~is_placed]
        reaches = spans.starts << _HALF | spans.ends
        self._entries[slots] = np.stack((ids[:, 1], spans.holders, reaches), axis=1)

    def discard(self, ids: Numbers, holder: int) -> None:
        slots = self._locate(ids[:, 0])
        self._clear(slots[(slots >= 0) & (self._entries[slots, 1] == holder)])

    def take_some(self) -> tuple[Numbers, Spans]:
        """Takes some ids out, bucket by bucket."""
        start = self._taken * _ROOM
        self._taken += _BUCKETS_A_STEP
        keys = self._keys.ravel()
        slots = np.flatnonzero(keys[start : self._taken * _ROOM]) + start
        proofs, holders, reaches = self._entries[slots].T
        ids = np.stack((keys[slots], proofs), axis=1)
        self._clear(slots)
        return ids, Spans(holders, reaches >> _HALF, reaches & _HALF_MASK)

    def _home(self, keys: Numbers) -> Slots:
        return (keys * np.uint64(self._factor) >> np.uint64(self._shift)).astype(np.int64)

    def _locate(self, keys: Numbers) -> Slots:
        """Where each key's entry is; -1 if there is none."""
        buckets = self._home(keys)
        slots = self._look(buckets, keys)
        missed = np.flatnonzero(slots < 0)
        while len(missed := missed[self._overflowed[buckets[missed]]]):
            buckets[missed] = (buckets[missed] + 1) % self._buckets
            slots[missed] = self._look(buckets[missed], keys[missed])
            missed = missed[slots[missed] < 0]
        return slots

    def _look(self, buckets: Slots, keys: Numbers) -> Slots:
        same = self._keys.take(buckets, axis=0) == keys[:, None]
        slots = buckets * _ROOM + same.argmax(axis=1)
        return np.where(self._keys.take(slots) == keys, slots, -1)

    def _clear(self, slots: Slots) -> None:
        self._keys.ravel()[slots] = 0
        self._entries[slots, 1] = NOWHERE
        self._count -= len(slots)


def _view(numbers: Numbers) -> memoryview:
    return memoryview(numbers.reshape(-1).data)


def _zeros(rows: int, columns: int) -> Numbers:
    """Memory that is taken page by page, when it is touched: numpy would ask for huge pages,
    and to clear fifty megabytes at once keeps everybody waiting."""
    size = rows * columns * np.dtype(np.uint64).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint64).reshape(rows, columns)
