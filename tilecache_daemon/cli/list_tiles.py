"""`tilecache list`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from tilecache.client import TileCacheClient
from tilecache.identity import SOURCE_TEXTS
from tilecache.v1.tile_metadata_store_pb2 import ListTilesRequest, TileMetadata
from tilecache_daemon.cli.cell_lists import format_options, write_cells
from tilecache_daemon.cli.output import (
    connect,
    message_to_dict,
    print_json_line,
    socket_option,
)
from tilecache_daemon.cli.tile_filters import tile_filter_options
from tilecache_daemon.cli.tiles import LABEL_TEXTS
from tilecache_daemon.cli.times import json_time
from tilecache_daemon.paging import read_pages

CALL_TIMEOUT_S: Final = 60
_TIMES: Final = ("captured_at", "created_at", "accessed_at", "uploaded_at")
FIELDS: Final = (
    *("tile_uuid", "zoom", "x", "y", "source", "flight_id", "location_hash"),
    *("latitude", "longitude", "tile_size_meters", "tile_size_pixels"),
    *("file_path", "content_sha256", "disk_bytes", *_TIMES),
    *("freshness_label", "quality_metadata"),
)
"""The fields of a line, named as in the contract."""


@click.command("list")
@tile_filter_options
@format_options
@socket_option
def list_command(
    request: ListTilesRequest,
    output: str,
    socket_path: Path,
) -> None:
    """List all tiles, or those that match the filters, in the order of their first insert.

    A tile must match every given filter. Lines are printed as they come, however many
    there are. What is stored while the list is printed may be missing from it.

    \b
    tilecache list --format csv > tiles.csv
    tilecache list --flight 3f2504e0-4f89-41d3-9a0c-0305e82c3301 --json
    tilecache list --zoom 17-18 --label rejected --format geojson

    With --json: JSON Lines, one tile a line, then the summary.
    """
    summary = {"kind": "summary", "tile_count": 0, "used_bytes": 0}
    with connect(socket_path) as client:
        rows = map(tile_to_dict, _counting(summary, read_tiles(client, request)))
        write_cells(output, "tile", FIELDS, rows)
    if output == "jsonl":
        print_json_line(summary)


def read_tiles(client: TileCacheClient, request: ListTilesRequest) -> Iterator[TileMetadata]:
    """All tiles that a request names, page by page."""
    for page in read_pages(client.store.ListTiles, request, CALL_TIMEOUT_S):
        yield from page.tiles


def tile_to_dict(tile: TileMetadata) -> dict[str, Any]:
    """A tile as a flat object with all FIELDS; None where there is nothing."""
    given = {field.name: value for field, value in tile.ListFields() if field.name != "key"}
    key = tile.key
    quality = message_to_dict(tile.quality_metadata) if "quality_metadata" in given else None
    return {
        **dict.fromkeys(FIELDS),
        **given,
        "zoom": key.zoom,
        "x": key.x,
        "y": key.y,
        "source": SOURCE_TEXTS.get(key.source, "other"),
        "flight_id": key.flight_id if key.HasField("flight_id") else None,
        **{name: json_time(given[name]) for name in _TIMES if name in given},
        "freshness_label": LABEL_TEXTS[tile.freshness_label],
        "quality_metadata": quality,
    }


def _counting(summary: dict[str, Any], tiles: Iterator[TileMetadata]) -> Iterator[TileMetadata]:
    for tile in tiles:
        summary["tile_count"] += 1
        summary["used_bytes"] += tile.disk_bytes
        yield tile
