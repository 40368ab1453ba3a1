"""`tilecache expiring`."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click
from google.protobuf.duration_pb2 import Duration

from tilecache.identity import SOURCE_TEXTS
from tilecache.v1.tile_metadata_store_pb2 import (
    ExpiringTile,
    ExpirySummary,
    ListExpiringRequest,
    ListExpiringResponse,
    Region,
)
from tilecache_daemon.cli.cell_lists import write_cells
from tilecache_daemon.cli.output import connect, print_json_line, print_table, socket_option
from tilecache_daemon.cli.regions import optional_region_options, zooms_option
from tilecache_daemon.cli.sizes import format_size, format_tiles
from tilecache_daemon.cli.tiles import LABEL_TEXTS
from tilecache_daemon.cli.times import format_date, json_time, parse_duration


class Tile(NamedTuple):
    """A tile that expires; the fields are those of the output."""

    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None
    tile_uuid: str
    captured_at: str
    disk_bytes: int
    freshness_label: str
    expires_at: str
    next_label: str
    sector: str


@click.command("expiring")
@click.option(
    "--within",
    metavar="DURATION",
    required=True,
    callback=parse_duration,
    help="How far ahead to look: 12h, 30d or 8w.",
)
@zooms_option(required=False)
@optional_region_options
@click.option(
    "--format",
    "output",
    type=click.Choice(["csv", "jsonl", "geojson"]),
    help="List the tiles, too, in this format.  [default: only how many, by day and sector]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
@socket_option
def expiring_command(
    within: timedelta,
    zooms: tuple[int, ...],
    region: Region | None,
    output: str | None,
    as_json: bool,
    socket_path: Path,
) -> None:
    """Show how many tiles expire within a time, by day (UTC) and sector, and which.

    A tile expires when its label gets worse by the sectors and rules of now.

    \b
    tilecache expiring --within 30d
    tilecache expiring --within 8w --zoom 13-15 --route mission.plan --width 2000 --format csv

    With --json: JSON Lines, one tile a line, then one line for each day and sector,
    then the summary.
    """
    output = "jsonl" if as_json else output
    duration = Duration()
    duration.FromTimedelta(within)
    request = ListExpiringRequest(
        within=duration, region=region, zooms=zooms, omit_tiles=output is None
    )
    summary = ExpirySummary()
    with connect(socket_path) as client:
        answers = client.store.ListExpiring(request)
        tiles = _tiles(summary, answers)
        if output is None:
            list(tiles)
        else:
            write_cells(output, "tile", Tile._fields, (tile._asdict() for tile in tiles))
    if output == "jsonl":
        for line in _summary_lines(summary):
            print_json_line(line)
    else:
        _print(summary, to_stderr=output is not None)


def _tiles(summary: ExpirySummary, answers: Iterator[ListExpiringResponse]) -> Iterator[Tile]:
    """The tiles of the answers; `summary` is filled at the end."""
    for answer in answers:
        if answer.HasField("summary"):
            summary.CopyFrom(answer.summary)
        yield from map(_tile, answer.tiles)


def _tile(tile: ExpiringTile) -> Tile:
    key = tile.key
    return Tile(
        *(key.zoom, key.x, key.y, SOURCE_TEXTS.get(key.source, "")),
        key.flight_id if key.HasField("flight_id") else None,
        tile.tile_uuid,
        json_time(tile.captured_at),
        tile.disk_bytes,
        LABEL_TEXTS[tile.freshness_label],
        json_time(tile.expires_at),
        LABEL_TEXTS[tile.next_label],
        tile.sector,
    )


def _summary_lines(summary: ExpirySummary) -> Iterator[dict[str, Any]]:
    for count in summary.counts:
        yield {
            "kind": "day",
            "day": format_date(count.day),
            "sector": count.sector,
            "next_label": LABEL_TEXTS[count.next_label],
            "tile_count": count.tile_count,
            "used_bytes": count.used_bytes,
        }
    yield {
        "kind": "summary",
        "tile_count": summary.tile_count,
        "used_bytes": summary.used_bytes,
        "starts_at": json_time(summary.starts_at),
        "clock_trusted": summary.clock_trusted,
    }


def _print(summary: ExpirySummary, *, to_stderr: bool) -> None:
    if not to_stderr and summary.counts:
        rows = (
            (
                format_date(count.day),
                count.sector,
                LABEL_TEXTS[count.next_label],
                f"{count.tile_count:,}",
                format_size(count.used_bytes),
            )
            for count in summary.counts
        )
        print_table(("day", "sector", "becomes", "tiles", "size"), rows)
    total = format_tiles(summary.tile_count, summary.used_bytes)
    click.echo(f"{total} expire.", err=to_stderr)
    if not summary.clock_trusted:
        click.echo("WARNING: the clock is not trusted; tiles may be older.", err=True)
