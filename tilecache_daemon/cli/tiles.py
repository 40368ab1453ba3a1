"""`tilecache derive`, `get` and `query`."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Final

import click

from tilecache.client import TileCacheClient
from tilecache.identity import (
    GOOGLEMAPS,
    SOURCE_NUMBERS,
    SOURCE_TEXTS,
    derive_location_hash,
    derive_tile_id,
)
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    GetTileRequest,
    QueryTilesRequest,
    Region,
    TileMetadata,
    TileRef,
)
from tilecache_daemon.cli.boxes import hint_at_exchange
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    fail,
    json_option,
    message_to_dict,
    print_json,
    print_table,
    socket_option,
)
from tilecache_daemon.cli.regions import region_options, zooms_option
from tilecache_daemon.cli.times import Moment

LABEL_TEXTS: Final = {
    number: name.removeprefix("FRESHNESS_LABEL_").lower()
    for name, number in pb.FreshnessLabel.items()
}
LABEL_NUMBERS: Final = {text: number for number, text in LABEL_TEXTS.items() if number}
QUERY_TIMEOUT_S: Final = 300.0

source_choice = click.Choice(sorted(SOURCE_NUMBERS))


@click.command("derive")
@click.argument("zoom", type=int)
@click.argument("x", type=int)
@click.argument("y", type=int)
@click.option(
    "--source",
    type=source_choice,
    default=GOOGLEMAPS,
    show_default=True,
    help="The source of the tile.",
)
@click.option("--flight", metavar="UUID", help="The flight that produced the tile.")
@json_option
def derive_command(
    zoom: int, x: int, y: int, source: str, flight: str | None, as_json: bool
) -> None:
    """Derive the ids of a tile, without a daemon.

    \b
    tilecache derive 18 154321 95812
    tilecache derive 20 617284 383250 --source onboard_ingest \\
        --flight 3f2504e0-4f89-41d3-9a0c-0305e82c3301
    """
    try:
        ids = {
            "tile_uuid": str(derive_tile_id(zoom, x, y, source, flight)),
            "location_hash": str(derive_location_hash(zoom, x, y)),
        }
    except ValueError as error:
        fail(ExitCode.USAGE, str(error))
    if as_json:
        print_json(ids)
    else:
        for name, value in ids.items():
            click.echo(f"{name:14}{value}")


@click.command("get")
@click.argument("tile", nargs=-1, required=True, metavar="TILE_UUID | ZOOM X Y")
@click.option(
    "--source",
    type=source_choice,
    default=GOOGLEMAPS,
    show_default=True,
    help="The source of the tile.",
)
@click.option("--flight", metavar="UUID", help="The flight that produced the tile.")
@click.option("--record-access", is_flag=True, help="Record this as an access to the tile.")
@socket_option
@json_option
def get_command(
    tile: tuple[str, ...],
    source: str,
    flight: str | None,
    record_access: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Show a tile, by its id or its key.

    \b
    tilecache get 17f7ac7e-6c25-5050-a7cd-b6578cd5f323
    tilecache get 18 154321 95812 --source googlemaps

    Exits with 1 if the tile does not exist.
    """
    request = GetTileRequest(tile=tile_reference(tile, source, flight), record_access=record_access)
    with connect(socket_path) as client:
        found = client.store.GetTile(request, timeout=10).tile
    if as_json:
        print_json(message_to_dict(found))
    else:
        print_table(("field", "value"), _fields(found))


@click.command("query")
@zooms_option(required=True)
@region_options
@click.option(
    "--source",
    "sources",
    type=source_choice,
    multiple=True,
    help="Only this source. May be repeated.",
)
@click.option("--flight", metavar="UUID", help="Only tiles of this flight.")
@click.option(
    "--captured-after",
    type=Moment(),
    help="Only tiles captured after this time (UTC).",
)
@click.option(
    "--label",
    "labels",
    type=click.Choice(sorted(LABEL_NUMBERS)),
    multiple=True,
    help="Only this label. May be repeated.  [default: all but rejected and stale_reject]",
)
@click.option("--best", is_flag=True, help="One tile per cell: the best label, then the newest.")
@click.option("--limit", type=click.IntRange(min=1), help="The maximum number of tiles.")
@socket_option
@json_option
def query_command(
    zooms: tuple[int, ...],
    region: Region,
    sources: tuple[str, ...],
    flight: str | None,
    captured_after: datetime | None,
    labels: tuple[str, ...],
    best: bool,
    limit: int | None,
    socket_path: Path,
    as_json: bool,
) -> None:
    """List the tiles of a region.

    \b
    tilecache query --bbox 45,5,48,11 --zoom 4
    tilecache query --circle 47.4,8.5,2000 --zoom 18 --best --json
    tilecache query --route '47.4,8.5 46.9,7.4' --width 2000 --zoom 13-15

    With --json: JSON Lines, one tile a line.
    """
    request = QueryTilesRequest(
        region=region,
        sources=[SOURCE_NUMBERS[source] for source in sources],
        flight_id=flight,
        labels=[LABEL_NUMBERS[label] for label in labels],
        selection=pb.TILE_SELECTION_BEST_PER_CELL if best else pb.TILE_SELECTION_ALL,
        limit=limit or 0,
    )
    if captured_after:
        request.captured_after.FromDatetime(captured_after)
    with connect(socket_path) as client:
        found = islice(_query(client, zooms, request), limit)
        first = list(islice(found, 1))
        if not first:
            hint_at_exchange(client, zooms, region)
        tiles = chain(first, found)
        if as_json:
            for tile in tiles:
                click.echo(json.dumps(message_to_dict(tile), ensure_ascii=False))
        else:
            click.echo(_LINE.format(*_COLUMNS))
            for tile in tiles:
                click.echo(_LINE.format(*_row(tile)))


def _query(
    client: TileCacheClient, zooms: Sequence[int], request: QueryTilesRequest
) -> Iterator[TileMetadata]:
    for zoom in zooms:
        request.zoom = zoom
        for answer in client.store.QueryTiles(request, timeout=QUERY_TIMEOUT_S):
            yield from answer.tiles


_LINE = "{:36}  {:20}  {:14}  {:12}  {:16}  {:>10}  {}"
"""Of fixed widths: a table would need all rows before it is printed."""
_COLUMNS = ("tile_uuid", "zoom/x/y", "source", "label", "captured", "bytes", "file")


def _row(tile: TileMetadata) -> tuple[object, ...]:
    key = tile.key
    return (
        tile.tile_uuid,
        f"{key.zoom}/{key.x}/{key.y}",
        SOURCE_TEXTS.get(key.source, "?"),
        LABEL_TEXTS[tile.freshness_label],
        f"{tile.captured_at.ToDatetime():%Y-%m-%d %H:%M}",
        tile.disk_bytes,
        tile.file_path,
    )


def _fields(tile: TileMetadata) -> Iterator[tuple[str, object]]:
    for field, value in message_to_dict(tile).items():
        parts = value.items() if isinstance(value, dict) else ()
        yield field, ", ".join(f"{name}: {part}" for name, part in parts) or value


def tile_reference(tile: tuple[str, ...], source: str, flight: str | None) -> TileRef:
    """The tile of the arguments TILE_UUID, or ZOOM X Y."""
    if len(tile) == 1:
        return TileRef(tile_uuid=tile[0])
    try:
        zoom, x, y = map(int, tile)
    except ValueError:
        raise click.UsageError("Give TILE_UUID, or ZOOM X Y as integers.") from None
    key = TileKey(zoom=zoom, x=x, y=y, source=SOURCE_NUMBERS[source], flight_id=flight)
    return TileRef(key=key)
