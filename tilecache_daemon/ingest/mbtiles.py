"""An MBTiles file as a source."""

import os
import re
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tilecache.identity import MAX_ZOOM
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import (
    MISPLACED,
    UNREADABLE,
    Found,
    Refusal,
    find_tile,
    printable,
)
from tilecache_daemon.ingest.images import MAX_IMAGE_BYTES
from tilecache_daemon.ingest.schemes import (
    Description,
    Rows,
    Scheme,
    Statement,
    choose_scheme,
    describe_fields,
    detect_scheme,
)

MAX_CHECKED_BYTES: Final = 1 << 30
"""A larger file is not read as a whole beforehand: that would take minutes."""

_HEADER_BYTES: Final = 100
_DIGITS: Final = re.compile(rb"[0-9]{1,10}")
# Texts sort after all numbers, so that an index serves both parts.
_ZOOM_CONDITION: Final = (
    " WHERE zoom_level BETWEEN ? AND ?"
    " OR zoom_level >= '' AND CAST(zoom_level AS INTEGER) BETWEEN ? AND ?"
)


class MBTilesFile:
    """A SQLite file with a table or view `tiles`.

    By its specification rows are counted from the south.

    https://github.com/mapbox/mbtiles-spec
    """

    unpacks = True

    def __init__(self, path: Path, zooms: range | None, scheme: Scheme | None) -> None:
        self.path = path.resolve()
        self._address = find_address(self.path)
        self._where = ""
        self._bounds: tuple[int, ...] = ()
        if zooms is not None:
            self._where, self._bounds = _ZOOM_CONDITION, (zooms[0], zooms[-1]) * 2
        if self.path.stat().st_size <= MAX_CHECKED_BYTES:
            self._check_whole()
        self._table = self._find_table()
        self._metadata = self._read_metadata() if self._has("metadata") else {}
        if self._metadata.get("format", "").lower() in ("pbf", "mvt"):
            raise SourceError(f"{path}: contains vector tiles, not images")
        self.scheme = choose_scheme(scheme, self._detect_scheme)

    def count(self) -> int:
        count = self._query_value(
            f"SELECT count(*) FROM {self._table}{self._where}",  # noqa: S608
            *self._bounds,
        )
        assert isinstance(count, int)
        return count

    def size_bytes(self) -> int:
        query = f"SELECT sum(length(tile_data)) FROM {self._table}{self._where}"  # noqa: S608
        if not self._where and self.path.stat().st_size > MAX_CHECKED_BYTES:
            # To add up all images takes minutes. Most of the pages in use are images.
            query = (
                "SELECT (page_count - freelist_count) * page_size * 0.9"
                " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
            )
        size_bytes = self._query_value(query, *self._bounds)
        return int(size_bytes) if isinstance(size_bytes, int | float) else 0

    def __iter__(self) -> Iterator[Found]:
        rows = self._query(
            "SELECT zoom_level, tile_column, tile_row,"  # noqa: S608
            f" CASE WHEN length(tile_data) <= {MAX_IMAGE_BYTES} THEN tile_data END,"
            f" length(tile_data) FROM {self._table}{self._where}",
            *self._bounds,
        )
        for *numbers, image, size_bytes in rows:
            name = printable(f"{self.path.name}:{'/'.join(map(_decode, numbers))}")
            zoom, column, row = map(_integer, numbers)
            if zoom is None or column is None or row is None:
                yield Refusal(name, "key", MISPLACED, "zoom, column and row must be integers")
            elif isinstance(image, bytes):
                yield find_tile(name, zoom, column, row, image, self.scheme)
            elif size_bytes is None:
                yield Refusal(name, "", UNREADABLE, "the row has no image")
            else:
                yield Refusal(name, "", UNREADABLE, "too large for a tile, or not an image")

    def _check_whole(self) -> None:
        if self._query_value("PRAGMA quick_check(1)") != b"ok":
            raise SourceError(f"{self.path}: damaged: SQLite's quick_check failed")

    def _find_table(self) -> str:
        """The table, view or query with the tiles."""
        if self._has("tiles"):
            return "tiles"
        if self._has("map") and self._has("images"):
            return "(SELECT * FROM map JOIN images USING (tile_id))"
        raise SourceError(f"{self.path}: not an MBTiles file: it has no table `tiles`")

    def _has(self, table: str) -> bool:
        tables = "SELECT count(*) FROM sqlite_master WHERE name = ? COLLATE NOCASE"
        return bool(self._query_value(tables, table))

    def _read_metadata(self) -> dict[str, str]:
        rows = self._query("SELECT name, value FROM metadata")
        return {_decode(name): _decode(value) for name, value in rows}

    def _detect_scheme(self) -> Scheme:
        described = describe_fields(self.path, self._metadata, "its metadata")
        statements = [Statement(Scheme.TMS, "the format"), *described.statements]
        description = Description(statements, described.latitudes)
        return detect_scheme(self.path, description, self._find_rows)

    def _find_rows(self) -> Rows | None:
        """The rows of the highest zoom level, whichever are to be imported: it is there that
        the schemes differ most."""
        for number in ("zoom_level", "CAST(zoom_level AS INTEGER)"):
            zoom = self._query_value(
                f"SELECT max({number}) FROM {self._table} WHERE {number} BETWEEN 0 AND ?",  # noqa: S608
                MAX_ZOOM,
            )
            if isinstance(zoom, int):
                row = "CAST(tile_row AS INTEGER)"
                [(lowest, highest)] = self._query(
                    f"SELECT min({row}), max({row}) FROM {self._table}"  # noqa: S608
                    f" WHERE {number} = ? AND {row} BETWEEN 0 AND ?",
                    zoom,
                    (1 << zoom) - 1,
                )
                return None if lowest is None else Rows(zoom, lowest, highest)
        return None

    def _query_value(self, query: str, *values: object) -> object:
        with closing(self._query(query, *values)) as rows:
            return next(rows, (None,))[0]

    def _query(self, query: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        try:
            with closing(sqlite3.connect(self._address, uri=True)) as database:
                # Text in the file need not be UTF-8.
                database.text_factory = bytes
                yield from database.execute(query, values)
        except sqlite3.Error as error:
            raise SourceError(f"{self.path}: cannot be read as MBTiles: {error}") from error


def find_address(path: Path) -> str:
    """SQLite's address of a file that is only read; raises SourceError.

    A file in the mode of a write-ahead log needs a writable directory, unless there is
    no log, so that nobody is writing.
    """
    name = f"file:{quote(os.fsencode(path))}?mode=ro"
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        in_wal_mode = header[18:20] == b"\2\2"
        log = path.with_name(f"{path.name}-wal")
        if not in_wal_mode:
            return name
        if not log.exists() or log.stat().st_size == 0:
            return f"{name}&immutable=1"
        if not os.access(path.parent, os.W_OK):
            raise SourceError(
                f"{path}: has a write-ahead log ({log.name}), which can be read in a writable "
                "directory only: copy both files there"
            )
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    return name


def _integer(value: object) -> int | None:
    """A number, which may be stored as text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bytes) and _DIGITS.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) else None


def _decode(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
