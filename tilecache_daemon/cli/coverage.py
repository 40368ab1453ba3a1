"""`tilecache coverage`."""

import importlib
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import (
    CellRange,
    CoverageSummary,
    DescribeCoverageRequest,
    DescribeCoverageResponse,
    FreshnessLabel,
    QueryTilesRequest,
    Region,
    TileSelection,
)
from tilecache_daemon.cli.boxes import hint_at_exchange
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    fail,
    json_option,
    print_json_line,
    print_table,
    socket_option,
)
from tilecache_daemon.cli.regions import region_options, zooms_option
from tilecache_daemon.cli.sizes import format_size
from tilecache_daemon.cli.times import Moment, format_date, json_time, to_timestamp

if TYPE_CHECKING:
    from tilecache_daemon.cli.coverage_map import CoverageMap

_MAX_LISTED_RECTANGLES: Final = 10
_MAX_CELLS_PER_QUERY: Final = 100_000
_LABELS: Final = {
    number: name.removeprefix("FRESHNESS_LABEL_").lower()
    for name, number in FreshnessLabel.items()
    if number
}
_COLUMNS: Final = ("zoom", "cells", "usable", "stale", "missing", "share", "size")


@click.command("coverage")
@zooms_option(required=True)
@region_options
@click.option(
    "--on",
    type=Moment(end_of_day=True),
    help="What will be usable at this time, by the rules of now; of a day, at its end (UTC).",
)
@click.option(
    "--png",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw a map of the region into this file, for one zoom. Needs the extra `plot`.",
)
@json_option
@socket_option
def coverage_command(
    zooms: tuple[int, ...],
    region: Region,
    on: datetime | None,
    png: Path | None,
    as_json: bool,
    socket_path: Path,
) -> None:
    """Show which cells of a region are usable, stale or missing, and how old their tiles are.

    A cell is usable if `tilecache query` lists a tile of it, and stale if it has only
    tiles that are rejected. Sizes and times are those of the best tile of each usable
    cell. `tilecache missing` lists the stale and missing cells.

    \b
    tilecache coverage --zoom 8 --bbox 44,22,53,41 --png ukraine.png
    tilecache coverage --zoom 13-15 --route mission.plan --width 2000
    tilecache coverage --zoom 16 --circle 50.45,30.52,5000 --on 2026-12-24

    With --json: JSON Lines, one zoom a line, then the summary.
    """
    if png is not None and len(zooms) != 1:
        raise click.UsageError("--png needs exactly one zoom.")
    picture = _Picture(zooms[0], region, png) if png is not None else None
    report = _Report()
    request = DescribeCoverageRequest(zooms=zooms, region=region, at=to_timestamp(on))
    with connect(socket_path) as client:
        for answer in client.store.DescribeCoverage(request):
            report.add(answer)
            if picture:
                picture.add(answer)
        if not report.total.covered_count:
            hint_at_exchange(client, zooms, region)
        if as_json:
            for summary in report.summaries:
                print_json_line(_to_dict("zoom", summary, on))
            print_json_line(_to_dict("summary", report.total, on))
        else:
            _print(report)
        if picture:
            picture.save(client, report.total, on)


class _Report:
    """The numbers of an answer, and its first stale and missing cells."""

    def __init__(self) -> None:
        self.summaries: list[CoverageSummary] = []
        self.total = CoverageSummary()
        self.listed: list[str] = []
        """One more than is printed, if there are more."""

    def add(self, answer: DescribeCoverageResponse) -> None:
        if answer.HasField("summary"):
            self.summaries.append(answer.summary)
        if answer.HasField("total"):
            self.total = answer.total
        room = _MAX_LISTED_RECTANGLES + 1 - len(self.listed)
        self.listed += islice(self._describe_cells(answer), room)

    def _describe_cells(self, answer: DescribeCoverageResponse) -> Iterator[str]:
        zoom = self.summaries[-1].zoom
        for word, areas in (("missing", answer.missing), ("stale", answer.stale)):
            for area in areas:
                columns = f"x {area.x_from} to {area.x_to}"
                yield f"{word}: zoom {zoom}, {columns}, y {area.y_from} to {area.y_to}"


class _Picture:
    """The map of an answer for one zoom."""

    def __init__(self, zoom: int, region: Region, png: Path) -> None:
        self._zoom = zoom
        self._region = region
        self._png = png
        self._module = _load_coverage_map()
        self._map: CoverageMap | None = None

    def add(self, answer: DescribeCoverageResponse) -> None:
        """Marks cells. The region is not read before: the daemon has checked it by now."""
        if answer.HasField("summary"):
            self._map = self._module.map_of(self._zoom, self._region)
        if self._map:
            self._module.mark(self._map, answer)

    def save(self, client: TileCacheClient, total: CoverageSummary, on: datetime | None) -> None:
        """Writes the file."""
        if self._map is None:
            fail(ExitCode.IN_PART, "the region has no cells to draw")
        if on is None:
            _mark_downgraded(client, self._map)
        usable = f"{total.usable_count:,} of {total.cell_count:,} cells usable"
        when = f"on {on:%Y-%m-%d}" if on else f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
        try:
            self._map.save(self._png, f"Zoom {self._zoom}: {usable}, {when}")
        except OSError as error:
            fail(ExitCode.FAILED, f"{self._png}: {error.strerror}")
        click.echo(f"Wrote {self._png}.", err=True)


def _load_coverage_map() -> Any:
    try:
        return importlib.import_module("tilecache_daemon.cli.coverage_map")
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "numpy"):
            raise
        fail(
            ExitCode.USAGE,
            f"--png needs {error.name}: run python -m pip install 'tilecache-daemon[plot]'",
        )


def _to_dict(kind: str, summary: CoverageSummary, on: datetime | None) -> dict[str, Any]:
    labels = {_LABELS[item.label]: item.count for item in summary.labels}
    at = to_timestamp(on)
    times = {
        name: json_time(getattr(summary, name)) if summary.HasField(name) else None
        for name in ("oldest_captured_at", "median_captured_at", "newest_captured_at")
    }
    has_estimate = summary.HasField("estimated_fetch_bytes")
    return {
        "kind": kind,
        **({"zoom": summary.zoom} if kind == "zoom" else {}),
        "cells": summary.cell_count,
        "usable": summary.usable_count,
        "stale": summary.stale_count,
        "missing": summary.missing_count,
        **{label: labels.get(label, 0) for label in _LABELS.values()},
        "usable_bytes": summary.usable_bytes,
        "estimated_fetch_bytes": summary.estimated_fetch_bytes if has_estimate else None,
        **times,
        "at": json_time(at) if at else None,
    }


def _print(report: _Report) -> None:
    rows = [_row(str(summary.zoom), summary) for summary in report.summaries]
    if len(rows) > 1:
        rows.append(_row("all", report.total))
    print_table(_COLUMNS, rows)
    labels = [f"{item.count:,} {_LABELS[item.label]}" for item in report.total.labels]
    if labels:
        click.echo(f"labels: {', '.join(labels)}")
    if report.total.usable_count:
        click.echo(f"captured: {_captures(report.total)}")
    for line in report.listed[:_MAX_LISTED_RECTANGLES]:
        click.echo(line)
    if len(report.listed) > _MAX_LISTED_RECTANGLES:
        click.echo("... and more; `tilecache missing` lists all")


def _row(name: str, summary: CoverageSummary) -> tuple[str, ...]:
    counts = (
        *(summary.cell_count, summary.usable_count, summary.stale_count, summary.missing_count),
    )
    return (
        name,
        *(f"{count:,}" for count in counts),
        f"{summary.usable_count / (summary.cell_count or 1):.1%}",
        format_size(summary.usable_bytes),
    )


def _captures(summary: CoverageSummary) -> str:
    oldest, median, newest = (
        format_date(getattr(summary, f"{which}_captured_at"))
        for which in ("oldest", "median", "newest")
    )
    return f"{oldest} to {newest}, median {median}"


def _mark_downgraded(client: TileCacheClient, coverage_map: "CoverageMap") -> None:
    for band in coverage_map.bands(_MAX_CELLS_PER_QUERY):
        request = QueryTilesRequest(
            zoom=coverage_map.zoom,
            region=Region(cell_range=CellRange(**band._asdict())),
            selection=TileSelection.TILE_SELECTION_BEST_PER_CELL,
        )
        for answer in client.store.QueryTiles(request):
            for tile in answer.tiles:
                coverage_map.mark(tile.key.x, tile.key.y, _LABELS[tile.freshness_label])
