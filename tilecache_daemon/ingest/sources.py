"""The sources of an import: directories, MBTiles files and PMTiles archives.

Iterating a source keeps at most one of its directories in memory.
"""

import os
import re
import sqlite3
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

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

from tilecache.identity import MAX_ZOOM, check_cell
from tilecache_daemon.errors import InvalidRequestError

UNREADABLE: Final = "UNREADABLE_FILE"
MISPLACED: Final = "MISPLACED_FILE"
NOT_UNPACKED: Final = "NOT_UNPACKED"


class SourceError(Exception):
    """A source cannot be read. The message names it."""


class FoundTile(NamedTuple):
    """An image in a source, for a valid cell."""

    file: str
    """Its path in the source, for messages."""
    zoom: int
    x: int
    y: int
    image: Path | bytes


class Refusal(NamedTuple):
    """A tile that is not stored, with the reason."""

    file: str
    field: str
    """The invalid field of `TileMetadata`; empty if there is none."""
    reason: str
    """Stable: the `ErrorInfo.reason` of the daemon, or one of this module's."""
    message: str


class IgnoredFile(NamedTuple):
    """A file that is not named like a tile."""

    file: str


Found = FoundTile | Refusal | IgnoredFile


class Source(Protocol):
    """A collection of tiles to import."""

    path: Path
    unpacks: bool
    """Whether the images have to be unpacked into files."""

    def count(self) -> int:
        """The number of tiles and refusals that iterating yields; raises SourceError."""

    def __iter__(self) -> Iterator[Found]:
        """Yields everything in the source; raises SourceError."""


def open_source(path: Path, zooms: range | None = None) -> Source:
    """The source at a path, limited to `zooms` if given; raises SourceError.

    An archive is checked as a whole, so that nothing of a damaged one is stored.
    """
    if path.is_dir():
        return TileDirectory(path, zooms)
    if path.suffix.lower() == ".mbtiles":
        return MBTilesFile(path, zooms)
    if path.suffix.lower() == ".pmtiles":
        return PMTilesArchive(path, zooms)
    raise SourceError(f"{path}: neither a directory nor an .mbtiles or .pmtiles file")


class TileDirectory:
    """A directory of `{zoom}/{x}/{y}.{png,jpg,jpeg,webp}`.

    Symbolic links are followed only to files within the directory.
    """

    unpacks = False
    _IMAGE: Final = re.compile(r".*\.(png|jpe?g|webp)", re.IGNORECASE)
    _NUMBER: Final = r"(0|[1-9][0-9]{0,9})"
    _TILE: Final = re.compile(rf"{_NUMBER}/{_NUMBER}/{_NUMBER}\.[^./]+")

    def __init__(self, path: Path, zooms: range | None) -> None:
        self.path = path.resolve()
        self._prefix = f"{self.path}{os.sep}"
        self._zooms = zooms

    def count(self) -> int:
        return sum(not isinstance(found, IgnoredFile) for found in self)

    def __iter__(self) -> Iterator[Found]:
        for entry in self._walk(str(self.path)):
            found = entry if isinstance(entry, Refusal) else self._classify(entry)
            if found is not None:
                yield found

    def _walk(self, directory: str) -> Iterator["os.DirEntry[str] | Refusal"]:
        try:
            with os.scandir(directory) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Refusal(self._name(directory), "", UNREADABLE, error.strerror or str(error))
            return
        for entry in ordered:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path)
            else:
                yield entry

    def _classify(self, entry: "os.DirEntry[str]") -> Found | None:
        name = self._name(entry.path)
        if entry.is_symlink() and entry.is_dir():
            return Refusal(name, "", MISPLACED, "symbolic links to directories are not followed")
        if entry.name.startswith(".") or not self._IMAGE.fullmatch(entry.name):
            return IgnoredFile(name)
        cell = self._TILE.fullmatch(name)
        if not cell:
            return Refusal(name, "file_path", MISPLACED, "not at {zoom}/{x}/{y}.{suffix}")
        zoom, x, y = map(int, cell.groups())
        if self._zooms is not None and zoom not in self._zooms:
            return None
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.path):
            return Refusal(name, "file_path", MISPLACED, "a symbolic link out of the directory")
        if not entry.is_file():
            return Refusal(name, "", UNREADABLE, "not a regular file")
        return _find(name, zoom, x, y, Path(entry.path))

    def _name(self, path: str) -> str:
        return path.removeprefix(self._prefix)


class MBTilesFile:
    """A SQLite file with a table or view `tiles`, whose rows are numbered from the south.

    https://github.com/mapbox/mbtiles-spec
    """

    unpacks = True

    def __init__(self, path: Path, zooms: range | None) -> None:
        self.path = path.resolve()
        self._where = ""
        self._bounds: tuple[int, ...] = ()
        if zooms is not None:
            self._where, self._bounds = " WHERE zoom_level BETWEEN ? AND ?", (zooms[0], zooms[-1])
        if self._query_value("PRAGMA quick_check(1)") != b"ok":
            raise SourceError(f"{path}: damaged: SQLite's quick_check failed")
        tables = "SELECT count(*) FROM sqlite_master WHERE name = ?"
        if not self._query_value(tables, "tiles"):
            raise SourceError(f"{path}: not an MBTiles file: it has no table `tiles`")
        if self._query_value(tables, "metadata"):
            kind = self._query_value("SELECT value FROM metadata WHERE name = 'format'")
            if kind in (b"pbf", b"mvt"):
                raise SourceError(f"{path}: contains vector tiles, not images")

    def count(self) -> int:
        count = self._query_value(f"SELECT count(*) FROM tiles{self._where}", *self._bounds)  # noqa: S608
        assert isinstance(count, int)
        return count

    def __iter__(self) -> Iterator[Found]:
        rows = self._query(
            "SELECT zoom_level, tile_column, tile_row, tile_data"  # noqa: S608
            f" FROM tiles{self._where}",
            *self._bounds,
        )
        for zoom, column, row, image in rows:
            name = f"{self.path.name}:{zoom}/{column}/{row}"
            if not all(isinstance(number, int) for number in (zoom, column, row)):
                yield Refusal(name, "key", MISPLACED, "zoom, column and row must be integers")
            elif not isinstance(image, bytes):
                yield Refusal(name, "", UNREADABLE, "the row has no image")
            else:
                yield _find(name, zoom, column, _flip_row(zoom, row), image)

    def _query_value(self, query: str, *values: object) -> object:
        with closing(self._query(query, *values)) as rows:
            return next(rows, (None,))[0]

    def _query(self, query: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        address = f"file:{quote(str(self.path))}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True)) as database:
                # Text in the file need not be UTF-8.
                database.text_factory = bytes
                yield from database.execute(query, values)
        except sqlite3.Error as error:
            raise SourceError(f"{self.path}: cannot be read as MBTiles: {error}") from error


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

    def __init__(self, path: Path, zooms: range | None) -> None:
        self.path = path.resolve()
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
                yield _find(name, zoom, x, y, self._read(start, entry.length))

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


def _find(file: str, zoom: int, x: int, y: int, image: Path | bytes) -> FoundTile | Refusal:
    try:
        check_cell(zoom, x, y)
    except ValueError as error:
        # The message begins with the name of the invalid part.
        field = f"key.{str(error).split()[0]}"
        return Refusal(file, field, InvalidRequestError.reason, str(error))
    return FoundTile(file, zoom, x, y, image)


def _flip_row(zoom: int, row: int) -> int:
    """Converts a TMS row, numbered from the south, to one numbered from the north."""
    return (1 << zoom) - 1 - row if 0 <= zoom <= MAX_ZOOM else row


def _first_id(zoom: int) -> int:
    """The id of a zoom's first tile in PMTiles."""
    return ((1 << 2 * zoom) - 1) // 3  # the cells of all zooms below
