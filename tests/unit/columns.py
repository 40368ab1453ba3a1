"""Tiles as the columns that PostgreSQL sends."""

from collections.abc import Sequence
from uuid import UUID

import numpy as np

from tilecache.identity import SOURCE_NUMBERS
from tilecache_daemon.models import FreshnessLabel, Tile
from tilecache_daemon.store.tile_columns import (
    LABEL_SHIFT,
    NO_FLIGHT,
    NO_SIZE,
    NO_TIME,
    RECORD,
    SHA256_SHIFT,
    TileColumns,
)

LABELS = [label.value for label in FreshnessLabel]


def columns_of(tiles: Sequence[Tile]) -> TileColumns:
    """Tiles as they are read, all in one run."""
    rows = np.zeros(len(tiles), dtype=RECORD)
    for row, tile in zip(rows, tiles, strict=True):
        for name in ("tile_uuid", "location_hash"):
            row[name] = list(UUID(getattr(tile, name)).bytes)
        row["flight_id"] = list(UUID(tile.flight_id).bytes if tile.flight_id else NO_FLIGHT)
        row["kind"] = (
            SOURCE_NUMBERS.get(tile.source, 0)
            | LABELS.index(tile.freshness_label) << LABEL_SHIFT
            | (tile.content_sha256 is not None) << SHA256_SHIFT
        )
        for name in (
            *("zoom", "x", "y", "tile_size_pixels", "latitude", "longitude"),
            *("tile_size_meters", "captured_us", "created_us"),
        ):
            row[name] = getattr(tile, name)
        row["disk_bytes"] = NO_SIZE if tile.disk_bytes is None else tile.disk_bytes
        for name in ("accessed_us", "uploaded_us"):
            moment = getattr(tile, name)
            row[name] = NO_TIME if moment is None else moment
        row["file_path_characters"] = len(tile.file_path)
    if not tiles:
        return TileColumns.read([])
    return TileColumns.read(
        [
            (
                rows.tobytes(),
                "".join(tile.file_path for tile in tiles),
                "".join(tile.content_sha256 or "" for tile in tiles) or None,
                "\n".join(tile.quality_metadata or "" for tile in tiles),
            )
        ]
    )
