"""A PMTiles archive as a source."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pmtiles.reader import MmapSource
from pmtiles.tile import (
    Compression,
    Entry,
    MagicNumberNotFound,
    SpecVersionUnsupported,
    TileType,
    deserialize_directory,
    deserialize_header,
    tileid_to_zxy,
)

from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import Found, find_tile
from tilecache_daemon.ingest.schemes import Scheme


class PMTilesArchive:
    """A PMTiles archive, version 3; https://github.com/protomaps/PMTiles."""

    unpacks = True
    _IMAGES: Final = (TileType.PNG, TileType.JPEG, TileType.WEBP, TileType.UNKNOWN)
    _ZOOMS: Final = range(32)
    _MAX_DEPTH: Final = 4
    _DAMAGE_ERRORS: Final = (
        ArithmeticError,
        EOFError,
        LookupError,
        MagicNumberNotFound,
        OSError,
        SpecVersionUnsupported,
        ValueError,
        zlib.error,
    )
    """Raised by the decoders for a damaged archive."""

    def __init__(self, path: Path, zooms: range | None, scheme: Scheme | None) -> None:
        self.path = path.resolve()
        self.scheme = scheme or Scheme.XYZ
        zooms = zooms or self._ZOOMS
        self._ids = range(_first_id(zooms[0]), _first_id(zooms[-1] + 1))
        try:
            with self.path.open("rb") as archive:
                self._read = MmapSource(archive)  # type: ignore[no-untyped-call]
            self._size = self.path.stat().st_size
            self._header = deserialize_header(self._read(0, 127))
        except self._DAMAGE_ERRORS as error:
            raise SourceError(f"{path}: not a PMTiles archive of version 3") from error
        if self._header["tile_type"] not in self._IMAGES:
            kind = self._header["tile_type"].name
            raise SourceError(f"{path}: contains {kind} tiles, not PNG, JPEG or WebP images")
        if self._header["internal_compression"] is not Compression.GZIP:
            raise SourceError(f"{path}: its directories are not compressed with gzip")
        self._count = sum(len(ids) for ids, _ in self._entries())

    def count(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Found]:
        for ids, entry in self._entries():
            start = self._header["tile_data_offset"] + entry.offset
            for tile_id in ids:
                zoom, x, y = tileid_to_zxy(tile_id)
                name = f"{self.path.name}:{zoom}/{x}/{y}"
                yield find_tile(name, zoom, x, y, self._read(start, entry.length), self.scheme)

    def _entries(self) -> Iterator[tuple[range, Entry]]:
        """Yields each entry with its tile ids within the requested zooms."""
        root = self._header["root_offset"], self._header["root_length"]
        try:
            for entry in self._traverse(*root, self._MAX_DEPTH):
                first = max(entry.tile_id, self._ids.start)
                yield range(first, min(entry.tile_id + entry.run_length, self._ids.stop)), entry
        except self._DAMAGE_ERRORS as error:
            raise SourceError(f"{self.path}: damaged: {error}") from error

    def _traverse(self, offset: int, length: int, depth: int) -> Iterator[Entry]:
        if depth == 0:
            raise ValueError("its directories are nested too deeply")
        for entry in deserialize_directory(self._read(offset, length)):
            if entry.run_length == 0:
                leaf = self._header["leaf_directory_offset"] + entry.offset
                yield from self._traverse(leaf, entry.length, depth - 1)
            else:
                self._check_entry(entry)
                yield entry

    def _check_entry(self, entry: Entry) -> None:
        end = self._header["tile_data_offset"] + entry.offset + entry.length
        if entry.offset < 0 or end > self._size:
            raise ValueError("it is truncated, or an entry points beyond its end")
        if entry.tile_id + entry.run_length > _first_id(self._ZOOMS.stop):
            raise ValueError("it contains tiles of an invalid zoom")


def _first_id(zoom: int) -> int:
    """The id of a zoom's first tile in PMTiles."""
    return ((1 << 2 * zoom) - 1) // 3  # the cells of all zooms below
