"""What tiles are imported from: a directory, an MBTiles file or a PMTiles archive.

A source is iterated without holding more than one directory of it in memory.
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
    """A source cannot be read as a whole; the message names it."""


class FoundTile(NamedTuple):
    """A picture of a cell that exists."""

    file: str
    """How people find it: its path in the source."""
    zoom: int
    x: int
    y: int
    picture: Path | bytes


class Refusal(NamedTuple):
    """A tile that is not stored, and why."""

    file: str
    field: str
    """The field of `TileMetadata` at fault; empty where none is."""
    reason: str
    """Stable: the `ErrorInfo.reason` of the daemon, or one of this module's."""
    message: str


class IgnoredFile(NamedTuple):
    """A file that does not claim to be a tile."""

    file: str


Found = FoundTile | Refusal | IgnoredFile


class Source(Protocol):
    """Where tiles come from."""

    path: Path
    unpacks: bool
    """Whether its pictures are to be unpacked before they have a path."""

    def count(self) -> int:
        """How many tiles and refusals iterating gives; raises SourceError."""

    def __iter__(self) -> Iterator[Found]:
        """Everything there is; raises SourceError."""


def open_source(path: Path, zooms: range | None = None) -> Source:
    """The source at a path, only its `zooms` if they are given; raises SourceError.

    An archive is checked from end to end, so that nothing of a damaged one is stored.
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

    Links are followed to files within the directory only.
    """

    unpacks = False
    _PICTURE: Final = re.compile(r".*\.(png|jpe?g|webp)", re.IGNORECASE)
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
            found = entry if isinstance(entry, Refusal) else self._judge(entry)
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

    def _judge(self, entry: "os.DirEntry[str]") -> Found | None:
        name = self._name(entry.path)
        if entry.is_symlink() and entry.is_dir():
            return Refusal(name, "", MISPLACED, "links to directories are not followed")
        if entry.name.startswith(".") or not self._PICTURE.fullmatch(entry.name):
            return IgnoredFile(name)
        cell = self._TILE.fullmatch(name)
        if not cell:
            return Refusal(name, "file_path", MISPLACED, "not at {zoom}/{x}/{y}.{suffix}")
        zoom, x, y = map(int, cell.groups())
        if self._zooms is not None and zoom not in self._zooms:
            return None
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.path):
            return Refusal(name, "file_path", MISPLACED, "a link that leads out of the directory")
        if not entry.is_file():
            return Refusal(name, "", UNREADABLE, "not a regular file")
        return _find(name, zoom, x, y, Path(entry.path))

    def _name(self, path: str) -> str:
        return path.removeprefix(self._prefix)


class MBTilesFile:
    """A SQLite file with a table or view `tiles`, whose rows count from the south.

    https://github.com/mapbox/mbtiles-spec
    """

    unpacks = True

    def __init__(self, path: Path, zooms: range | None) -> None:
        self.path = path.resolve()
        self._where = ""
        self._bounds: tuple[int, ...] = ()
        if zooms is not None:
            self._where, self._bounds = " WHERE zoom_level BETWEEN ? AND ?", (zooms[0], zooms[-1])
        if self._ask("PRAGMA quick_check(1)") != b"ok":
            raise SourceError(f"{path}: damaged; SQLite's quick_check fails")
        tables = "SELECT count(*) FROM sqlite_master WHERE name = ?"
        if not self._ask(tables, "tiles"):
            raise SourceError(f"{path}: not an MBTiles file; it has no table `tiles`")
        if self._ask(tables, "metadata"):
            kind = self._ask("SELECT value FROM metadata WHERE name = 'format'")
            if kind in (b"pbf", b"mvt"):
                raise SourceError(f"{path}: holds vector tiles, not pictures")

    def count(self) -> int:
        count = self._ask(f"SELECT count(*) FROM tiles{self._where}", *self._bounds)  # noqa: S608
        assert isinstance(count, int)
        return count

    def __iter__(self) -> Iterator[Found]:
        rows = self._select(
            "SELECT zoom_level, tile_column, tile_row, tile_data"  # noqa: S608
            f" FROM tiles{self._where}",
            *self._bounds,
        )
        for zoom, column, row, picture in rows:
            name = f"{self.path.name}:{zoom}/{column}/{row}"
            if not all(isinstance(number, int) for number in (zoom, column, row)):
                yield Refusal(name, "key", MISPLACED, "zoom, column and row are not all numbers")
            elif not isinstance(picture, bytes):
                yield Refusal(name, "", UNREADABLE, "the row has no picture")
            else:
                yield _find(name, zoom, column, _turn_row(zoom, row), picture)

    def _ask(self, query: str, *values: object) -> object:
        with closing(self._select(query, *values)) as rows:
            return next(rows, (None,))[0]

    def _select(self, query: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        address = f"file:{quote(str(self.path))}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True)) as database:
                # Foreign text need not be UTF-8.
                database.text_factory = bytes
                yield from database.execute(query, values)
        except sqlite3.Error as error:
            raise SourceError(f"{self.path}: cannot be read as MBTiles: {error}") from error


class PMTilesArchive:
    """A PMTiles archive, version 3; https://github.com/protomaps/PMTiles."""

    unpacks = True
    _PICTURES: Final = (TileType.PNG, TileType.JPEG, TileType.WEBP, TileType.UNKNOWN)
    _ZOOMS: Final = range(32)
    _MAX_DEPTH: Final = 4
    _DAMAGES: Final = (
        ArithmeticError,
        EOFError,
        LookupError,
        MagicNumberNotFound,
        OSError,
        SpecVersionUnsupported,
        ValueError,
        zlib.error,
    )
    """What the decoders of a damaged archive raise."""

    def __init__(self, path: Path, zooms: range | None) -> None:
        self.path = path.resolve()
        zooms = zooms or self._ZOOMS
        self._ids = range(_first_id(zooms[0]), _first_id(zooms[-1] + 1))
        try:
            with self.path.open("rb") as archive:
                self._read = MmapSource(archive)  # type: ignore[no-untyped-call]
            self._size = self.path.stat().st_size
            self._header = deserialize_header(self._read(0, 127))
        except self._DAMAGES as error:
            raise SourceError(f"{path}: not a PMTiles archive of version 3") from error
        if self._header["tile_type"] not in self._PICTURES:
            kind = self._header["tile_type"].name
            raise SourceError(f"{path}: holds {kind} tiles, not PNG, JPEG or WebP pictures")
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
        """Each entry with those of its tile ids that are wanted."""
        root = self._header["root_offset"], self._header["root_length"]
        try:
            for entry in self._traverse(*root, self._MAX_DEPTH):
                first = max(entry.tile_id, self._ids.start)
                yield range(first, min(entry.tile_id + entry.run_length, self._ids.stop)), entry
        except self._DAMAGES as error:
            raise SourceError(f"{self.path}: damaged: {error}") from error

    def _traverse(self, offset: int, length: int, depth: int) -> Iterator[Entry]:
        if depth == 0:
            raise ValueError("its directories lie in each other without end")
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
            raise ValueError("it is cut off, or points beyond its end")
        if entry.tile_id + entry.run_length > _first_id(self._ZOOMS.stop):
            raise ValueError("it holds tiles of a zoom that there is not")


def _find(file: str, zoom: int, x: int, y: int, picture: Path | bytes) -> FoundTile | Refusal:
    try:
        check_cell(zoom, x, y)
    except ValueError as error:
        # The message begins with the part at fault.
        field = f"key.{str(error).split()[0]}"
        return Refusal(file, field, InvalidRequestError.reason, str(error))
    return FoundTile(file, zoom, x, y, picture)


def _turn_row(zoom: int, row: int) -> int:
    """Counts a row from the north that was counted from the south (TMS)."""
    return (1 << zoom) - 1 - row if 0 <= zoom <= MAX_ZOOM else row


def _first_id(zoom: int) -> int:
    """The id of a zoom's first tile in PMTiles."""
    return ((1 << 2 * zoom) - 1) // 3  # the cells of all zooms below
