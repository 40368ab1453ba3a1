"""Writes an MBTiles file for map programs: the best image of each cell, without its metadata."""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tilecache.mercator import cell_bounds
from tilecache.v1.tile_metadata_store_pb2 import FreshnessLabel
from tilecache_daemon.export.bundle_writers import TargetError
from tilecache_daemon.export.exporter import ExportedTile
from tilecache_daemon.ingest.images import read_header
from tilecache_daemon.ingest.unpacking import NoRoomError

# By the specification, rows are counted from the south.
_SCHEMA: Final = """
    CREATE TABLE metadata (name TEXT, value TEXT);
    CREATE TABLE tiles (
        zoom_level INTEGER, tile_column INTEGER, tile_row INTEGER, tile_data BLOB,
        PRIMARY KEY (zoom_level, tile_column, tile_row)
    );
    CREATE TEMP TABLE chosen (
        zoom INTEGER, x INTEGER, y INTEGER, rank INTEGER, captured INTEGER,
        PRIMARY KEY (zoom, x, y)
    ) WITHOUT ROWID;
"""
_CHOOSE: Final = """
    INSERT INTO chosen VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (zoom, x, y) DO UPDATE SET rank = excluded.rank, captured = excluded.captured
    WHERE (excluded.rank, -excluded.captured) < (chosen.rank, -chosen.captured)
"""
_BEST_FIRST: Final = (
    FreshnessLabel.FRESHNESS_LABEL_FRESH,
    FreshnessLabel.FRESHNESS_LABEL_DOWNGRADED,
    FreshnessLabel.FRESHNESS_LABEL_STALE_WARN,
    FreshnessLabel.FRESHNESS_LABEL_STALE_REJECT,
    FreshnessLabel.FRESHNESS_LABEL_REJECTED,
)


class MBTilesWriter:
    """Writes an .mbtiles file. Until it is complete, its name ends with `.part`; an interrupted
    export begins anew.

    https://github.com/mapbox/mbtiles-spec
    """

    def __init__(self, target: Path) -> None:
        """Raises TargetError if the target exists or cannot be written."""
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._formats: Counter[str] = Counter()
        self._zooms: set[int] = set()
        self._west_south_east_north = (180.0, 90.0, -180.0, -90.0)
        if target.exists():
            raise TargetError(f"{target}: exists already")
        try:
            self._part.unlink(missing_ok=True)
            self._database = sqlite3.connect(self._part)
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise TargetError(f"{self._part}: {error}") from error

    def write_image(self, tile: ExportedTile) -> None:
        """Only checks the image; raises UnreadableImageError."""
        read_header(tile.image)

    def append(self, tile: ExportedTile) -> None:
        key = tile.metadata.key
        rank = _BEST_FIRST.index(tile.metadata.freshness_label)
        captured = tile.metadata.captured_at.ToNanoseconds()
        with self._checked():
            chosen = self._database.execute(_CHOOSE, (key.zoom, key.x, key.y, rank, captured))
            if not chosen.rowcount:
                return
            row = (1 << key.zoom) - 1 - key.y
            self._database.execute(
                "INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?)",
                (key.zoom, key.x, row, tile.image),
            )
        self._formats[read_header(tile.image).suffix] += 1
        self._zooms.add(key.zoom)
        box = cell_bounds(key.zoom, key.x, key.y)
        west, south, east, north = self._west_south_east_north
        self._west_south_east_north = (
            min(west, box.west),
            min(south, box.south),
            max(east, box.east),
            max(north, box.north),
        )

    def finish(self) -> None:
        """Completes the file, durably; raises NoRoomError."""
        metadata = {"name": self._target.stem, "type": "baselayer", "version": "1"}
        if self._zooms:
            metadata |= {
                "format": self._formats.most_common(1)[0][0],
                "minzoom": str(min(self._zooms)),
                "maxzoom": str(max(self._zooms)),
                "bounds": ",".join(map(str, self._west_south_east_north)),
            }
        with self._checked():
            self._database.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
            self._database.commit()
            self._database.close()
        self._part.rename(self._target)
        for path in (self._target, self._target.parent):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Removes a file that is not finished."""
        with suppress(sqlite3.Error):
            self._database.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise NoRoomError(f"{self._part}: {error}") from error
