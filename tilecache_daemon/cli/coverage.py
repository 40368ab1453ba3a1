"""`tilecache coverage`."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM
from tilecache.mercator import (
    BoundingBox,
    CellRectangle,
    cells_in_box,
    cells_in_circle,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    CellRange,
    CoverageSummary,
    DescribeCoverageRequest,
    FreshnessLabel,
    QueryTilesRequest,
    Region,
    TileSelection,
)
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    fail,
    json_option,
    print_json,
    print_table,
    socket_option,
)
from tilecache_daemon.cli.regions import region_options

if TYPE_CHECKING:
    from tilecache_daemon.cli.coverage_map import CoverageMap

_MAX_LISTED_RECTANGLES: Final = 10
_MAX_CELLS_PER_QUERY: Final = 100_000
_ALL_LABELS: Final = [number for number in FreshnessLabel.values() if number]


@click.command("coverage")
@click.option("--zoom", type=click.IntRange(0, MAX_ZOOM), required=True, help="The zoom level.")
@region_options
@click.option(
    "--png",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw a map of the region into this file. Needs the extra `plot`.",
)
@json_option
@socket_option
def coverage_command(
    zoom: int, region: Region, png: Path | None, as_json: bool, socket_path: Path
) -> None:
    """Show which cells of a region are covered, and how fresh their tiles are.

    Each cell is counted under the label of its best tile.

    \b
    tilecache coverage --zoom 8 --bbox 44,22,53,41 --png ukraine.png
    tilecache coverage --zoom 16 --circle 50.45,30.52,5000
    """
    draw = _load_coverage_map() if png is not None else None
    with connect(socket_path) as client:
        summary, missing = _describe(client, zoom, region)
        if as_json:
            print_json(_to_dict(zoom, summary, missing))
        else:
            _print(zoom, summary, missing)
        if png is not None and draw is not None:
            _draw(client, draw(zoom, list(_rectangles(zoom, region))), png, summary)
            click.echo(f"Wrote {png}.", err=True)


def _load_coverage_map() -> "type[CoverageMap]":
    try:
        module = importlib.import_module("tilecache_daemon.cli.coverage_map")
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "numpy"):
            raise
        fail(
            ExitCode.USAGE,
            f"--png needs {error.name}: run python -m pip install 'tilecache-daemon[plot]'",
        )
    coverage_map: type[CoverageMap] = module.CoverageMap
    return coverage_map


def _describe(
    client: TileCacheClient, zoom: int, region: Region
) -> tuple[CoverageSummary, list[CellRange]]:
    summary = CoverageSummary()
    missing: list[CellRange] = []
    request = DescribeCoverageRequest(zoom=zoom, region=region)
    for answer in client.store.DescribeCoverage(request):
        if answer.HasField("summary"):
            summary = answer.summary
        missing.extend(answer.missing)
    return summary, missing


def _label_text(label: FreshnessLabel.ValueType) -> str:
    return FreshnessLabel.Name(label).removeprefix("FRESHNESS_LABEL_").lower()


def _to_dict(zoom: int, summary: CoverageSummary, missing: list[CellRange]) -> dict[str, Any]:
    return {
        "zoom": zoom,
        "cell_count": summary.cell_count,
        "covered_count": summary.covered_count,
        "missing_count": summary.missing_count,
        "labels": {_label_text(item.label): item.count for item in summary.labels},
        "missing": [
            {"x_from": area.x_from, "x_to": area.x_to, "y_from": area.y_from, "y_to": area.y_to}
            for area in missing
        ],
    }


def _print(zoom: int, summary: CoverageSummary, missing: list[CellRange]) -> None:
    counts = {
        "cells": summary.cell_count,
        "covered": summary.covered_count,
        **{f"  {_label_text(item.label)}": item.count for item in summary.labels},
        "missing": summary.missing_count,
    }
    total = summary.cell_count or 1
    rows = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in counts.items()]
    print_table([f"zoom {zoom}", "cells", "share"], rows)
    for area in missing[:_MAX_LISTED_RECTANGLES]:
        click.echo(f"missing: x {area.x_from} to {area.x_to}, y {area.y_from} to {area.y_to}")
    if len(missing) > _MAX_LISTED_RECTANGLES:
        count = len(missing) - _MAX_LISTED_RECTANGLES
        click.echo(f"... and {count:,} more rectangles; --json lists all")


def _rectangles(zoom: int, region: Region) -> Iterator[CellRectangle]:
    match region.WhichOneof("area"):
        case "bounding_box":
            box = region.bounding_box
            yield from cells_in_box(zoom, BoundingBox(box.south, box.west, box.north, box.east))
        case "circle":
            circle = region.circle
            yield from cells_in_circle(
                zoom, circle.latitude, circle.longitude, circle.radius_meters
            )
        case "cell_range":
            cells = region.cell_range
            yield CellRectangle(cells.x_from, cells.x_to, cells.y_from, cells.y_to)


def _draw(
    client: TileCacheClient, coverage_map: "CoverageMap", png: Path, summary: CoverageSummary
) -> None:
    zoom = coverage_map.zoom
    for band in coverage_map.bands(_MAX_CELLS_PER_QUERY):
        request = QueryTilesRequest(
            zoom=zoom,
            region=Region(cell_range=CellRange(**band._asdict())),
            labels=_ALL_LABELS,
            selection=TileSelection.TILE_SELECTION_BEST_PER_CELL,
        )
        for answer in client.store.QueryTiles(request):
            for tile in answer.tiles:
                coverage_map.mark(tile.key.x, tile.key.y, _label_text(tile.freshness_label))
    covered = f"{summary.covered_count:,} of {summary.cell_count:,} cells covered"
    try:
        coverage_map.save(png, f"Zoom {zoom}: {covered}")
    except OSError as error:
        fail(ExitCode.FAILED, f"{png}: {error.strerror}")
