"""Decodes a directory of a PMTiles archive, many entries at once.

https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md#4-directories
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

_MAX_NUMBER_BYTES: Final = 9
"""Of a number below 2**63."""


class Clipped(NamedTuple):
    """The tiles of some entries within a range of ids, as columns."""

    starts: Numbers
    stops: Numbers
    offsets: Numbers
    lengths: Numbers


class Entries(NamedTuple):
    """Entries of a directory, as columns. A run length of 0 is a leaf directory."""

    ids: Numbers
    run_lengths: Numbers
    offsets: Numbers
    lengths: Numbers

    def part(self, start: int, stop: int) -> "Entries":
        """The entries at some positions."""
        return Entries(*(column[start:stop] for column in self))

    def clip(self, ids: range) -> Clipped:
        """The parts of the entries within a range of ids; offsets are those of the entries."""
        starts = np.maximum(self.ids, ids.start)
        stops = np.maximum(starts, np.minimum(self.ids + self.run_lengths, ids.stop))
        return Clipped(starts, stops, self.offsets, self.lengths)


def first_id(zoom: int) -> int:
    """The id of a zoom's first tile."""
    return ((1 << 2 * zoom) - 1) // 3  # the cells of all zooms below


def decode_directory(content: bytes, ids: range) -> Entries:
    """The entries of a directory whose ids are to be within a range; raises ValueError."""
    numbers = _decode_numbers(content)
    count = int(numbers[0])
    if count == 0:
        raise ValueError("damaged: an empty directory")
    if count > (len(numbers) - 1) // 4:
        raise ValueError("damaged: a directory is truncated")
    steps, run_lengths, lengths, positions = numbers[1 : 4 * count + 1].reshape(4, count)
    entries = Entries(np.cumsum(steps), run_lengths, _offsets(positions, lengths), lengths)
    _check_ids(entries, ids)
    return entries


def _decode_numbers(content: bytes) -> Numbers:
    """Decodes varints: seven bits in each byte, the lowest first; the eighth says that more
    follow."""
    octets = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if not len(ends):
        raise ValueError("damaged: a directory is truncated")
    octets = octets[: ends[-1] + 1]
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends + 1 - starts
    if sizes.max() > _MAX_NUMBER_BYTES:
        raise ValueError("damaged: a directory has a number beyond any meaning")
    shifts = 7 * (np.arange(len(octets)) - np.repeat(starts, sizes))
    return np.add.reduceat((octets & 0x7F).astype(np.int64) << shifts, starts)


def _offsets(positions: Numbers, lengths: Numbers) -> Numbers:
    """Position 0 is the end of the previous entry, others are an offset and one."""
    if positions[0] == 0:
        raise ValueError("damaged: the first entry of a directory has no offset")
    # A sum of many lengths must not wrap. No file is that large.
    if max(positions.max(), lengths.max()) > np.iinfo(np.int64).max // (4 * len(lengths)):
        raise ValueError("damaged: it is truncated, or an entry points beyond its end")
    before = np.cumsum(lengths) - lengths
    given = np.maximum.accumulate(np.where(positions > 0, np.arange(len(positions)), 0))
    offsets: Numbers = positions[given] - 1 + before - before[given]
    return offsets


def _check_ids(entries: Entries, allowed: range) -> None:
    """Ids increase, and no run reaches the next entry or leaves the range.

    A directory whose ids are within a range of its own can be visited once only, so that
    directories cannot refer to each other in circles.
    """
    # Steps are below 2**63: a sum that wraps is less than the one before.
    if (entries.ids[1:] <= entries.ids[:-1]).any() or entries.ids[0] < allowed.start:
        raise ValueError("damaged: the ids of a directory are not in order")
    if entries.ids[-1] >= allowed.stop:
        raise ValueError("damaged: it contains tiles of an invalid zoom, or of another directory")
    room = np.append(entries.ids[1:], allowed.stop) - entries.ids
    if (entries.run_lengths > room).any():
        raise ValueError("damaged: a run of tiles reaches into the next, or to an invalid zoom")
