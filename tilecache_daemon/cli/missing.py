"""`tilecache missing`."""

import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from tilecache.client import TileCacheClient
from tilecache.identity import GOOGLEMAPS, tile_ids_text
from tilecache.v1.tile_cache_admin_pb2 import GetStorageUsageRequest, GetStorageUsageResponse
from tilecache.v1.tile_metadata_store_pb2 import (
    CellRange,
    CoverageSummary,
    DescribeCoverageRequest,
    DescribeCoverageResponse,
    GetServerInfoRequest,
    Region,
)
from tilecache_daemon.cli.cell_lists import format_options, write_cells
from tilecache_daemon.cli.output import (
    admin_socket_option,
    connect,
    print_json_line,
)
from tilecache_daemon.cli.regions import region_options, zooms_option
from tilecache_daemon.cli.sizes import format_count, format_size
from tilecache_daemon.cli.times import Moment, json_time, to_timestamp

CALL_TIMEOUT_S: Final = 30


class Cell(NamedTuple):
    """A cell to fetch; the fields are those of the output."""

    zoom: int
    x: int
    y: int
    source: str
    tile_uuid: str
    location_hash: str
    reason: str


class Room(NamedTuple):
    """The bytes that there are for tiles; None where that is not known or not limited."""

    max_used_bytes: int | None
    used_bytes: int
    free_disk_bytes: int | None


@click.command("missing")
@zooms_option(required=True)
@region_options
@click.option(
    "--on",
    type=Moment(end_of_day=True),
    help="Also what will be stale at this time; of a day, at its end (UTC).",
)
@format_options
@admin_socket_option
def missing_command(
    zooms: tuple[int, ...], region: Region, on: datetime | None, output: str, socket_path: Path
) -> None:
    """List the cells of a region that have no usable tile: what is to be fetched.

    Each with the ids of its tile from googlemaps, and the reason: missing or stale. A
    summary on stderr shows how many cells there are and about how many bytes, beside
    the ceiling and the free space of the tiles directory.

    \b
    tilecache missing --zoom 13-15 --route mission.plan --width 2000 > fetch.csv
    tilecache missing --zoom 16 --circle 50.45,30.52,5000 --on 2026-12-24 --format geojson

    Import what was fetched with `tilecache import --on-conflict replace-if-newer`: a
    stale tile has another image.

    With --json: JSON Lines, one cell a line, then one line for each zoom, then the summary.
    """
    request = DescribeCoverageRequest(zooms=zooms, region=region, at=to_timestamp(on))
    summaries: list[CoverageSummary] = []
    with connect(socket_path) as client:
        room = _read_room(client)
        answers = _noting(summaries, client.store.DescribeCoverage(request))
        cells = (cell._asdict() for cell in _cells(summaries, answers))
        write_cells(output, "cell", Cell._fields, cells)
    if output == "jsonl":
        for line in _summary_lines(summaries, room, on):
            print_json_line(line)
    else:
        for text in _summary_texts(summaries, room):
            click.echo(text, err=True)


def _noting(
    summaries: list[CoverageSummary], answers: Iterator[DescribeCoverageResponse]
) -> Iterator[DescribeCoverageResponse]:
    """The answers; `summaries` gets those of the zooms, then that of all."""
    for answer in answers:
        if answer.HasField("summary"):
            summaries.append(answer.summary)
        if answer.HasField("total"):
            summaries.append(answer.total)
        yield answer


def _cells(
    summaries: list[CoverageSummary], answers: Iterator[DescribeCoverageResponse]
) -> Iterator[Cell]:
    for answer in answers:
        zoom = summaries[-1].zoom
        for reason, areas in (("missing", answer.missing), ("stale", answer.stale)):
            for area in areas:
                for x, y in _each_cell(area):
                    ids = tile_ids_text(zoom, x, y, GOOGLEMAPS, None)
                    yield Cell(zoom, x, y, GOOGLEMAPS, *ids, reason)


def _each_cell(area: CellRange) -> Iterator[tuple[int, int]]:
    for y in range(area.y_from, area.y_to + 1):
        for x in range(area.x_from, area.x_to + 1):
            yield x, y


def _read_room(client: TileCacheClient) -> Room:
    usage: GetStorageUsageResponse = client.admin.GetStorageUsage(
        GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S
    )
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
    free = None
    if info.tiles_directory and Path(info.tiles_directory).is_dir():
        free = shutil.disk_usage(info.tiles_directory).free
    return Room(usage.max_used_bytes or None, usage.total.used_bytes, free)


def _summary_lines(
    summaries: list[CoverageSummary], room: Room, on: datetime | None
) -> Iterator[dict[str, Any]]:
    at = to_timestamp(on)
    for summary in summaries:
        is_total = not summary.HasField("zoom")
        yield {
            "kind": "summary" if is_total else "zoom",
            **({} if is_total else {"zoom": summary.zoom}),
            "cells": summary.stale_count + summary.missing_count,
            "stale": summary.stale_count,
            "missing": summary.missing_count,
            "estimated_fetch_bytes": _estimate(summary),
            **(room._asdict() if is_total else {}),
            "at": json_time(at) if at else None,
        }


def _estimate(summary: CoverageSummary) -> int | None:
    known = summary.HasField("estimated_fetch_bytes")
    return summary.estimated_fetch_bytes if known else None


def _summary_texts(summaries: list[CoverageSummary], room: Room) -> Iterator[str]:
    for summary in summaries:
        name = f"zoom {summary.zoom}" if summary.HasField("zoom") else "all"
        count = summary.stale_count + summary.missing_count
        size = _estimate(summary)
        about = "of unknown size" if size is None else f"about {format_size(size)}"
        yield (
            f"{name}: {format_count(count, 'cell')} to fetch ({summary.missing_count:,} missing, "
            f"{summary.stale_count:,} stale), {about}"
        )
    size = _estimate(summaries[-1]) or 0
    if room.max_used_bytes is not None:
        yield f"ceiling: {format_size(room.max_used_bytes)}, {format_size(room.used_bytes)} used"
        if room.used_bytes + size > room.max_used_bytes:
            yield "WARNING: this does not fit under the ceiling."
    if room.free_disk_bytes is not None:
        yield f"free disk space: {format_size(room.free_disk_bytes)}"
        if size > room.free_disk_bytes:
            yield "WARNING: this does not fit on the disk."
