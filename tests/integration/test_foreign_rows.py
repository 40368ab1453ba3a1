"""Rows that other programs or earlier versions wrote are read unchanged."""

from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from google.protobuf.json_format import MessageToDict

from tests.tiles import FLIGHT, ONBOARD, Block, store_row
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TILE_SOURCE_UNSPECIFIED
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_STALE_REJECT,
    FRESHNESS_LABEL_STALE_WARN,
    FreshnessLabel,
    LookupTilesRequest,
    QueryTilesRequest,
    TileMetadata,
    TileRef,
)

MOMENT = datetime(1969, 7, 20, 20, 17, 40, 123456, tzinfo=timezone.utc)
EVERY_LABEL = [number for number in FreshnessLabel.values() if number]

# All are read together, so that columns that only some rows have are not mixed up.
ROWS: list[dict[str, Any]] = [
    {},
    {"source": "somewhere_else"},
    {"file_path": "line\nbreak\n.jpg"},
    {"file_path": "käse/🧀/\u2028.jpg"},
    {"file_path": "x" * 20_000},
    {"file_path": ""},
    {"tile_quality_metadata": "[1, 2]"},
    {"tile_quality_metadata": '{"text": "line\\nbreak", "🧀": null}'},
    {"tile_quality_metadata": "{}"},
    {"content_sha256": "🧀" * 64},
    {"content_sha256": "ab" * 32, "disk_bytes": 0},
    {"disk_bytes": 2**63 - 1},
    {"tile_size_pixels": -1, "tile_size_meters": float("inf")},
    {"tile_size_pixels": 0},
    {"captured_at": MOMENT, "created_at": MOMENT + timedelta(days=1)},
    {"accessed_at": MOMENT, "uploaded_at": MOMENT},
    {"freshness_status": "stale_warn"},
    {"freshness_status": "stale_reject"},
]


def test_rows_of_other_writers_are_returned_unchanged_by_every_call(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    keys = [
        block.key(index, source=ONBOARD, flight_id=FLIGHT if index % 3 else None)
        for index in range(len(ROWS))
    ]
    ids = [store_row(sql, key, **row) for key, row in zip(keys, ROWS, strict=True)]
    lookup = LookupTilesRequest(tiles=[TileRef(tile_uuid=tile_uuid) for tile_uuid in ids])
    first = [result.tile for result in client.store.LookupTiles(lookup, timeout=60).results]
    query = QueryTilesRequest(zoom=block.zoom, region=block.region, labels=EVERY_LABEL)
    found = [tile for answer in client.store.QueryTiles(query, timeout=60) for tile in answer.tiles]
    assert sorted(found, key=lambda tile: tile.key.x) == first
    for tile, key, row in zip(first, keys, ROWS, strict=True):
        assert (tile.key.x, tile.key.flight_id) == (key.x, key.flight_id)
        check(tile, row)


def check(tile: TileMetadata, row: dict[str, Any]) -> None:
    assert (tile.key.source == TILE_SOURCE_UNSPECIFIED) is ("source" in row)
    assert tile.file_path == row.get("file_path", "old.jpg")
    assert tile.content_sha256 == row.get("content_sha256", "")
    assert tile.HasField("disk_bytes") is ("disk_bytes" in row)
    assert tile.disk_bytes == row.get("disk_bytes", 0)
    assert tile.tile_size_pixels == row.get("tile_size_pixels", 256)
    assert tile.tile_size_meters == row.get("tile_size_meters", 100.0)
    for name in ("captured_at", "created_at", "accessed_at", "uploaded_at"):
        if name in row:
            assert getattr(tile, name).ToDatetime(timezone.utc) == row[name]
    assert tile.HasField("accessed_at") is tile.HasField("uploaded_at") is ("accessed_at" in row)
    labels = {
        "stale_warn": FRESHNESS_LABEL_STALE_WARN,
        "stale_reject": FRESHNESS_LABEL_STALE_REJECT,
    }
    if "freshness_status" in row:
        assert tile.freshness_label == labels[row["freshness_status"]]
    quality = {
        None: None,
        "[1, 2]": {"value": [1.0, 2.0]},
        '{"text": "line\\nbreak", "🧀": null}': {"text": "line\nbreak", "🧀": None},
        "{}": {},
    }[row.get("tile_quality_metadata")]
    assert tile.HasField("quality_metadata") is (quality is not None)
    assert MessageToDict(tile.quality_metadata) == (quality or {})
