"""Lists of cells or tiles that are handed on to other programs: CSV, JSON Lines, GeoJSON."""

import csv
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import click

from tilecache.mercator import cell_bounds
from tilecache_daemon.cli.output import print_json_line

Cell = Mapping[str, Any]
"""A flat object with `zoom`, `x` and `y`."""


def format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--format` and `--json`, which is `--format jsonl`; the command gets `output`."""

    @click.option(
        "--format",
        "output",
        type=click.Choice(["csv", "jsonl", "geojson"]),
        default="csv",
        show_default=True,
        help="The format of the list.",
    )
    @click.option("--json", "as_json", is_flag=True, help="The same as --format jsonl.")
    @functools.wraps(command)
    def with_format(*args: Any, output: str, as_json: bool, **options: Any) -> Any:
        return command(*args, output="jsonl" if as_json else output, **options)

    return with_format


def write_cells(output: str, kind: str, fields: Sequence[str], cells: Iterable[Cell]) -> None:
    """Writes a list in a format of `format_options`, one at a time; `kind` is that of a line of
    JSON."""
    remaining = iter(cells)
    # A request that is refused is refused here, before a header is written.
    cells = chain(list(islice(remaining, 1)), remaining)
    match output:
        case "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(fields)
            for cell in cells:
                writer.writerow(map(_csv_value, cell.values()))
        case "jsonl":
            for cell in cells:
                print_json_line({"kind": kind, **cell})
        case "geojson":
            click.echo('{"type": "FeatureCollection", "features": [', nl=False)
            for index, cell in enumerate(cells):
                click.echo(("," if index else "") + "\n" + json.dumps(_feature(cell)), nl=False)
            click.echo("\n]}")


def _csv_value(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def _feature(cell: Cell) -> dict[str, Any]:
    south, west, north, east = cell_bounds(cell["zoom"], cell["x"], cell["y"])
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": cell,
    }
