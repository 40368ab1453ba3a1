"""Tiles as the bytes of their wire form, many at once.

Every answer that carries tiles has them in field 1, and the wire form of a repeated field is
the concatenation of its elements. So a tile is packed once, as an element of field 1, and an
answer is a join of elements.

Building a message for each tile takes ten times as long, and is most of the time of a region
that is read for the first time. So tiles are packed as a matrix of a row per tile and a column
per byte; where a field is shorter in one tile than in others, the surplus bytes of its row are
left out at the end. Tags are those of the .proto: a field's number times eight plus its wire
type.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tilecache.v1 import tile_metadata_store_pb2
from tilecache_daemon.models import FIRST_MICROS, LAST_MICROS, UNIX_SECONDS_AT_2000
from tilecache_daemon.rpc.wire import LABEL_NUMBERS, quality_struct, timestamp
from tilecache_daemon.service.watching import BlockUpdate
from tilecache_daemon.store.tile_columns import (
    NO_FLIGHT,
    NO_SIZE,
    NO_TIME,
    Bytes,
    Texts,
    TileColumns,
    uuid_characters,
)

Sizes = NDArray[np.int64]

_MOST_PART_BYTES: Final = 256 * 1024
_MOST_MATRIX_BYTES: Final = 2 * 1024 * 1024
_LABEL_NUMBERS: Final = np.array(list(LABEL_NUMBERS.values()), dtype=np.uint8)
_MICROS: Final = 1_000_000
_EVERYWHERE: Final = np.ones(1, dtype=np.bool_)


def pack_tiles(tiles: TileColumns) -> list[bytes]:
    """Each tile as an element of field 1."""
    if tiles.tile_count == 0:
        return []
    widest = sum(text.widest for text in tiles[1:])
    if tiles.tile_count > 1 and tiles.tile_count * widest > _MOST_MATRIX_BYTES:
        # A long text makes each row of the matrix as wide.
        middle = tiles.tile_count // 2
        return pack_tiles(tiles.part(None, middle)) + pack_tiles(tiles.part(middle, None))
    rows = tiles.rows
    key = _Message()
    key.number(0x08, rows["zoom"])
    key.number(0x10, rows["x"])
    key.number(0x18, rows["y"])
    key.number(0x20, tiles.source_number)
    key.optional_uuid(b"\x2a\x24", rows["flight_id"])
    tile = _Message()
    tile.uuid(b"\x0a\x24", rows["tile_uuid"])
    tile.message(0x12, key)
    tile.uuid(b"\x1a\x24", rows["location_hash"])
    tile.double(0x21, rows["latitude"])
    tile.double(0x29, rows["longitude"])
    tile.double(0x31, rows["tile_size_meters"])
    tile.number(0x38, rows["tile_size_pixels"])
    tile.text(b"\x42", tiles.file_path, _EVERYWHERE)
    tile.text(b"\x4a", tiles.content_sha256, tiles.content_sha256.sizes > 0)
    tile.number(0x50, rows["disk_bytes"], absent=NO_SIZE)
    # -infinity reads as NO_TIME, but these are never null.
    tile.time(0x5A, np.maximum(rows["captured_us"], FIRST_MICROS))
    tile.time(0x62, np.maximum(rows["created_us"], FIRST_MICROS))
    tile.time(0x6A, rows["accessed_us"])
    tile.time(0x72, rows["uploaded_us"])
    tile.number(0x78, _LABEL_NUMBERS[_shared(tiles.label_index)])
    quality = tiles.quality_metadata
    tile.text(b"\x82\x01", _structs(quality), quality.sizes > 0)
    element = _Message()
    element.message(0x0A, tile)
    return element.packed(tiles.tile_count)


def pack_results(elements: Iterable[bytes | None]) -> bytes:
    """The whole of a LookupTilesResponse: a result for each tile, empty for a miss."""
    results = [element or b"" for element in elements]
    heads = map(_result_head, map(len, results))
    return b"".join(chain.from_iterable(zip(heads, results, strict=True)))


def pack_update(update: BlockUpdate) -> list[bytes]:
    """An update as elements of `WatchTilesResponse.blocks`, in parts of a bounded size."""
    parts = [[]] if not update.elements else list(_parts(update.elements))
    packed = []
    for index, elements in enumerate(parts):
        is_last = index == len(parts) - 1
        head = tile_metadata_store_pb2.BlockUpdate(
            zoom=update.key.zoom,
            block_x=update.key.x,
            block_y=update.key.y,
            version=update.version,
            base_version=update.base_version,
            removed_tile_uuids=update.removed if is_last else (),
            is_partial=not is_last,
        ).SerializeToString()
        size = len(head) + sum(map(len, elements))
        packed.append(b"".join((b"\x12", _varint(size), *elements, head)))
    return packed


def _parts(elements: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    size = max(_MOST_PART_BYTES // max(map(len, elements)), 1)
    for start in range(0, len(elements), size):
        yield elements[start : start + size]


@lru_cache(maxsize=4_096)
def _result_head(size: int) -> bytes:
    """Field 1 of a LookupTilesResponse up to a result of so many bytes."""
    return b"\x0a" + _varint(size)


def with_access(element: bytes, accessed_at: datetime) -> bytes:
    """A packed tile with another time of its last use."""
    answer = tile_metadata_store_pb2.GetTileResponse.FromString(element)
    answer.tile.accessed_at.CopyFrom(timestamp(accessed_at))
    return answer.SerializeToString()


class _Message:
    """The fields of a message for all tiles: matrices of a row per tile, or of one row where
    all tiles have the same, and how many bytes of each row count; None for all bytes."""

    def __init__(self) -> None:
        self._parts: list[tuple[Bytes, Sizes | None]] = []

    def number(self, tag: int, column: NDArray[Any], *, absent: int = 0) -> None:
        """A varint; left out where it is `absent`."""
        numbers = _shared(column)
        if len(numbers) > 1:
            self._field(bytes((tag,)), *_varints(numbers), present=numbers != absent)
        elif (number := int(numbers[0])) != absent:
            self._add(_row(bytes((tag,)) + _varint(number)), None)

    def double(self, tag: int, column: NDArray[Any]) -> None:
        """Eight bytes."""
        # Compared as bits: a zero may have a sign.
        numbers = _shared(column.astype("<f8").view(np.uint64))
        self._field(bytes((tag,)), numbers.view(np.uint8).reshape(len(numbers), 8))

    def uuid(self, head: bytes, column: Bytes) -> None:
        """The canonical text of 16 bytes."""
        self._field(head, uuid_characters(column))

    def optional_uuid(self, head: bytes, column: Bytes) -> None:
        """As `uuid`; left out where it is all zeros."""
        if column.any():
            present = (column != np.frombuffer(NO_FLIGHT, dtype=np.uint8)).any(axis=1)
            self._field(head, uuid_characters(column), present=present)

    def text(self, tag: bytes, texts: Texts, present: NDArray[np.bool_]) -> None:
        """A text, or what else has a length; left out where it is not present."""
        if present.any():
            self._field(tag, *_varints(_shared(texts.sizes)), present=present)
            uneven = bool((texts.sizes != texts.widest).any())
            self._add(texts.padded(), texts.sizes if uneven else None)

    def time(self, tag: int, column: NDArray[Any]) -> None:
        """A Timestamp, the nearest one that there is; left out where there is none."""
        micros = _shared(column)
        present = micros != NO_TIME
        if not present.any():
            return
        seconds, rest = np.divmod(np.clip(micros, FIRST_MICROS, LAST_MICROS), _MICROS)
        moment = _Message()
        moment.number(0x08, seconds + UNIX_SECONDS_AT_2000)
        moment.number(0x10, rest * 1_000)
        self.message(tag, moment, present)

    def message(
        self, tag: int, message: "_Message", present: NDArray[np.bool_] = _EVERYWHERE
    ) -> None:
        """Another message; left out where it is not present."""
        self._field(bytes((tag,)), *_varints(message.sizes), present=present)
        for matrix, sizes in message._parts:
            self._add(matrix, sizes, present)

    @property
    def sizes(self) -> Sizes:
        """How many bytes each tile's has; of one row if all are alike."""
        fixed = sum(matrix.shape[1] for matrix, sizes in self._parts if sizes is None)
        total = np.array([fixed], dtype=np.int64)
        for _, sizes in self._parts:
            if sizes is not None:
                total = total + sizes
        return total

    def packed(self, count: int) -> list[bytes]:
        """The bytes of each tile's message."""
        ends = np.cumsum(np.broadcast_to(self.sizes, count))
        width = sum(matrix.shape[1] for matrix, _ in self._parts)
        rows = np.empty((count, width), dtype=np.uint8)
        rows[:] = np.concatenate([matrix[0] for matrix, _ in self._parts])
        counting: NDArray[np.bool_] | None = None
        start = 0
        for matrix, sizes in self._parts:
            end = start + matrix.shape[1]
            if len(matrix) > 1:
                rows[:, start:end] = matrix
            if sizes is not None:
                if counting is None:
                    counting = np.ones((count, width), dtype=np.bool_)
                counting[:, start:end] = np.arange(end - start) < sizes[:, None]
            start = end
        data = (rows if counting is None else rows[counting]).tobytes()
        return [data[start:end] for start, end in pairwise([0, *ends.tolist()])]

    def _field(
        self,
        head: bytes,
        matrix: Bytes,
        sizes: Sizes | None = None,
        *,
        present: NDArray[np.bool_] = _EVERYWHERE,
    ) -> None:
        self._add(_row(head), None, present)
        self._add(matrix, sizes, present)

    def _add(
        self, matrix: Bytes, sizes: Sizes | None, present: NDArray[np.bool_] = _EVERYWHERE
    ) -> None:
        if present is not _EVERYWHERE and not _all(present):
            sizes = np.where(present, matrix.shape[1] if sizes is None else sizes, 0)
        if sizes is not None and len(sizes) == 1:
            matrix, sizes = matrix[:, : int(sizes[0])], None
        if matrix.shape[1]:
            self._parts.append((matrix, sizes))


def _shared(column: NDArray[Any]) -> NDArray[Any]:
    """One value where all are the same: it is packed once."""
    first = column[:1]
    return first if _all(column == first) else column


def _all(flags: NDArray[np.bool_]) -> bool:
    # As flags.all(), in a third of its time.
    return bool(np.count_nonzero(flags) == len(flags))


def _row(data: bytes) -> Bytes:
    """A matrix of one row."""
    return np.frombuffer(data, dtype=np.uint8)[None]


def _varints(column: NDArray[Any]) -> tuple[Bytes, Sizes | None]:
    """Seven bits per byte, the lowest first; all bytes but the last have the eighth bit set."""
    if len(column) == 1:
        return _row(_varint(int(column[0]))), None
    numbers = column.astype(np.int64).view(np.uint64)
    width = _varint_size(int(numbers.max()))
    rows = np.empty((len(numbers), width), dtype=np.uint8)
    for index in range(width):
        rows[:, index] = numbers >> np.uint64(7 * index)
    if _varint_size(int(numbers.min())) == width:
        rows[:, :-1] |= np.uint8(0x80)
        rows[:, -1] &= np.uint8(0x7F)
        return rows, None
    sizes = np.ones(len(numbers), dtype=np.int64)
    for index in range(1, width):
        sizes += numbers >= np.uint64(1 << 7 * index)
    rows |= np.uint8(0x80)
    rows[np.arange(len(rows)), sizes - 1] &= np.uint8(0x7F)
    return rows, sizes


def _varint(number: int) -> bytes:
    rest = number & (1 << 64) - 1
    packed = bytearray()
    while rest > 0x7F:
        packed.append(rest & 0x7F | 0x80)
        rest >>= 7
    packed.append(rest)
    return bytes(packed)


def _varint_size(number: int) -> int:
    return (max(number, 1).bit_length() + 6) // 7


def _structs(texts: Texts) -> Texts:
    """JSON texts as packed `Struct`s."""
    if not texts.widest:
        return texts
    packed: dict[bytes, bytes] = {b"": b""}
    structs = []
    for index in range(len(texts.sizes)):
        text = texts.at(index)
        if text not in packed:
            packed[text] = quality_struct(text).SerializeToString(deterministic=True)
        structs.append(packed[text])
    return Texts.of(structs)
