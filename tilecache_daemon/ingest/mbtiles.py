"""An MBTiles file as a source."""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tilecache.identity import MAX_ZOOM
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import MISPLACED, UNREADABLE, Found, Refusal, find_tile
from tilecache_daemon.ingest.schemes import (
    Description,
    Rows,
    Scheme,
    Statement,
    choose_scheme,
    describe_fields,
    detect_scheme,
)


class MBTilesFile:
    """A SQLite file with a table or view `tiles`.

    By its specification rows are counted from the south.

    https://github.com/mapbox/mbtiles-spec
    """

    unpacks = True

    def __init__(self, path: Path, zooms: range | None, scheme: Scheme | None) -> None:
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
        self._metadata = self._read_metadata() if self._query_value(tables, "metadata") else {}
        if self._metadata.get("format") in ("pbf", "mvt"):
            raise SourceError(f"{path}: contains vector tiles, not images")
        self.scheme = choose_scheme(scheme, self._detect_scheme)

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
                yield find_tile(name, zoom, column, row, image, self.scheme)

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
        zoom = self._query_value(
            "SELECT max(zoom_level) FROM tiles WHERE zoom_level BETWEEN 0 AND ?", MAX_ZOOM
        )
        if zoom is None:
            return None
        [(lowest, highest)] = self._query(
            "SELECT min(tile_row), max(tile_row) FROM tiles"
            " WHERE zoom_level = ? AND tile_row BETWEEN 0 AND ?",
            zoom,
            (1 << int(str(zoom))) - 1,
        )
        return None if lowest is None else Rows(int(str(zoom)), lowest, highest)

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


def _decode(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
