"""A PMTiles archive as a source.

What an archive says of itself is not trusted: what is read, unpacked and kept of it has
limits, and all of its directories are checked before a tile is yielded.
"""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from pmtiles.tile import Compression, HeaderDict, TileType, deserialize_header, tileid_to_zxy

from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import Found, find_tile, printable
from tilecache_daemon.ingest.gunzip import gunzip, is_gzipped
from tilecache_daemon.ingest.images import MAX_IMAGE_BYTES
from tilecache_daemon.ingest.pmtiles_directory import Entries, decode_directory, first_id
from tilecache_daemon.ingest.schemes import (
    Description,
    Rows,
    Scheme,
    Statement,
    choose_scheme,
    detect_scheme,
    find_latitudes,
)

MAX_TILES: Final = 100_000_000
"""More than anyone imports. A run length of a few bytes can say any number."""

MAX_DIRECTORY_BYTES: Final = 4 * 1024 * 1024
"""Of one directory, packed or unpacked. Writers split them at a hundredth of that."""

_HEADER_BYTES: Final = 127
_MAX_DEPTH: Final = 4
_ZOOMS: Final = range(32)
_IMAGES: Final = (TileType.PNG, TileType.JPEG, TileType.WEBP, TileType.UNKNOWN)
_COMPRESSIONS: Final = (Compression.NONE, Compression.GZIP, Compression.UNKNOWN)
_VERSION: Final = 3
_SAMPLED_TILES: Final = 1_000


class _Directory(NamedTuple):
    """A part of the archive that lists the tiles with some ids."""

    offset: int
    length: int
    ids: range
    depth: int


class PMTilesArchive:
    """A PMTiles archive, version 3, whose rows are counted from the north.

    https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md
    """

    unpacks = True

    def __init__(self, path: Path, zooms: range | None, scheme: Scheme | None) -> None:
        self.path = path.resolve()
        zooms = zooms or _ZOOMS
        self._ids = range(first_id(zooms[0]), first_id(zooms[-1] + 1))
        try:
            # Not mapped into memory: an error of the medium would be a signal.
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._size = os.fstat(self._file).st_size
            self._header = self._read_header()
            self._count, self._size_bytes = self._measure_tiles()
            self.scheme = choose_scheme(scheme, self._detect_scheme)
        except (OSError, ValueError) as error:
            raise SourceError(f"{path}: {_reason(error)}") from error

    def count(self) -> int:
        return self._count

    def size_bytes(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[Found]:
        archive = printable(self.path.name)
        try:
            for entries in self._entries():
                for first, stop, offset, length in zip(
                    *(column.tolist() for column in entries.clip(self._ids)), strict=True
                ):
                    start = self._header["tile_data_offset"] + offset
                    image = self._read(start, min(length, MAX_IMAGE_BYTES + 1))
                    for tile_id in range(first, stop):
                        zoom, x, row = tileid_to_zxy(tile_id)
                        name = f"{archive}:{zoom}/{x}/{row}"
                        yield find_tile(name, zoom, x, row, image, self.scheme)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path}: {_reason(error)}") from error

    def _read_header(self) -> HeaderDict:
        content = os.pread(self._file, _HEADER_BYTES, 0)
        magic, version = content[:7], content[7:8]
        if magic[:2] == b"PM" and magic != b"PMTiles":
            raise ValueError("PMTiles of version 1 or 2, not of version 3: `pmtiles convert` it")
        if magic != b"PMTiles" or len(content) < _HEADER_BYTES:
            raise ValueError("not a PMTiles archive of version 3")
        # Some early writers wrote the digit.
        if version not in (b"\3", b"3"):
            raise ValueError(f"PMTiles of version {version[0]}, not of version {_VERSION}")
        header = deserialize_header(magic + bytes([_VERSION]) + content[8:])
        self._check_header(header)
        return header

    def _check_header(self, header: HeaderDict) -> None:
        if header["tile_type"] not in _IMAGES:
            kind = header["tile_type"].name
            raise ValueError(f"contains {kind} tiles, not PNG, JPEG or WebP images")
        for what in ("internal_compression", "tile_compression"):
            if header[what] not in _COMPRESSIONS:
                kind = header[what].name
                part = "directories" if what.startswith("internal") else "tiles"
                raise ValueError(f"its {part} are compressed with {kind}, which is not supported")
        for section in ("root_offset", "leaf_directory_offset", "tile_data_offset"):
            if header[section] > self._size:
                raise ValueError("damaged: it is truncated")

    def _detect_scheme(self) -> Scheme:
        header = self._header
        bounds_e7 = (
            *(header["min_lon_e7"], header["min_lat_e7"]),
            *(header["max_lon_e7"], header["max_lat_e7"]),
        )
        bounds = [degrees_e7 / 1e7 for degrees_e7 in bounds_e7]
        statements = [Statement(Scheme.XYZ, "the format")]
        description = Description(statements, find_latitudes(bounds))
        return detect_scheme(self.path, description, self._find_rows)

    def _find_rows(self) -> Rows | None:
        """The rows of some tiles of the highest zoom level, whichever are to be imported: it is
        there that the schemes differ most. The ids are in the order of the zoom levels, and
        those of leaf directories are the ids of tiles."""
        directory: _Directory | None = self._root()
        ids: list[int] = []
        while directory:
            entries = self._decode(directory)
            step = max(1, len(entries.ids) // _SAMPLED_TILES)
            ids += entries.ids[::-step].tolist()
            last = len(entries.ids) - 1
            directory = None if entries.run_lengths[last] else self._leaf(directory, entries, last)
        cells = [tileid_to_zxy(tile_id) for tile_id in ids]
        highest = max(zoom for zoom, _, _ in cells)
        rows = [row for zoom, _, row in cells if zoom == highest]
        return Rows(highest, min(rows), max(rows))

    def _measure_tiles(self) -> tuple[int, int]:
        """The number of tiles, and the sum of their sizes."""
        count = size_bytes = 0
        for entries in self._entries():
            clipped = entries.clip(self._ids)
            # Products and sums of what an archive says can be beyond any integer.
            runs = (clipped.stops - clipped.starts).astype(np.float64)
            count += int(runs.sum())
            size_bytes += int(runs @ clipped.lengths)
            if count > MAX_TILES:
                raise ValueError(
                    f"says that it contains more than {MAX_TILES:,} tiles. "
                    "--max-zoom imports a part of it"
                )
        return count, size_bytes

    def _entries(self) -> Iterator[Entries]:
        """Yields the entries of tiles in the order of their ids.

        Directories without tiles of the requested zooms are not read. Raises ValueError.
        """
        # Directories of a legal archive do not overlap.
        unread_bytes = self._size
        open_directories = [self._parts(self._root())]
        while open_directories:
            part = next(open_directories[-1], None)
            if part is None:
                open_directories.pop()
            elif isinstance(part, Entries):
                yield part
            else:
                unread_bytes -= part.length
                if unread_bytes < 0:
                    raise ValueError("damaged: its directories overlap")
                open_directories.append(self._parts(part))

    def _parts(self, directory: _Directory) -> Iterator[_Directory | Entries]:
        """The leaf directories of a directory, and the entries of tiles between them."""
        entries = self._decode(directory)
        start = 0
        for position in np.flatnonzero(entries.run_lengths == 0).tolist():
            if position > start:
                yield entries.part(start, position)
            leaf = self._leaf(directory, entries, position)
            if leaf.ids.start < self._ids.stop and leaf.ids.stop > self._ids.start:
                yield leaf
            start = position + 1
        if start < len(entries.ids):
            yield entries.part(start, len(entries.ids))

    def _root(self) -> _Directory:
        offset, length = self._header["root_offset"], self._header["root_length"]
        return _Directory(offset, length, range(first_id(_ZOOMS.stop)), depth=1)

    def _leaf(self, parent: _Directory, entries: Entries, position: int) -> _Directory:
        if parent.depth == _MAX_DEPTH:
            raise ValueError("damaged: its directories are nested too deeply")
        last = position == len(entries.ids) - 1
        ids = range(
            int(entries.ids[position]),
            parent.ids.stop if last else int(entries.ids[position + 1]),
        )
        offset = self._header["leaf_directory_offset"] + int(entries.offsets[position])
        return _Directory(offset, int(entries.lengths[position]), ids, parent.depth + 1)

    def _decode(self, directory: _Directory) -> Entries:
        if directory.length > MAX_DIRECTORY_BYTES:
            raise ValueError(f"damaged: a directory of {directory.length:,} bytes")
        content = self._read(directory.offset, directory.length)
        packed = self._header["internal_compression"]
        if packed is Compression.GZIP or (packed is Compression.UNKNOWN and is_gzipped(content)):
            content = gunzip(content, MAX_DIRECTORY_BYTES)
        entries = decode_directory(content, directory.ids)
        tiles = entries.run_lengths > 0
        ends = entries.offsets[tiles] + entries.lengths[tiles] + self._header["tile_data_offset"]
        if ends.max(initial=0) > self._size:
            raise ValueError("damaged: it is truncated, or an entry points beyond its end")
        return entries

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise ValueError("damaged: it is truncated, or an entry points beyond its end")
        content = os.pread(self._file, length, offset)
        if len(content) < length:
            raise ValueError("damaged: it became shorter while it was read")
        return content


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
