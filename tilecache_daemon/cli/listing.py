"""Lists that are handed on to other programs: CSV, JSON Lines and GeoJSON, printed as they come."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from tilecache.mercator import cell_bounds
from tilecache_daemon.cli.output import print_json_line

Row = Mapping[str, Any]
"""A flat object. Those with a cell have `zoom`, `x` and `y`."""


def print_list(output: str, kind: str, fields: Sequence[str], rows: Iterable[Row]) -> None:
    """Prints rows as `--format` says: csv, jsonl or geojson."""
    if output == "csv":
        _print_csv(fields, rows)
    elif output == "jsonl":
        for row in rows:
            print_json_line({"kind": kind, **row})
    else:
        _print_geojson(rows)


def _print_csv(fields: Sequence[str], rows: Iterable[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: json.dumps(value) if isinstance(value, dict) else value
                for name, value in row.items()
            }
        )


def _print_geojson(rows: Iterable[Row]) -> None:
    click.echo('{"type": "FeatureCollection", "features": [', nl=False)
    for index, row in enumerate(rows):
        click.echo(("," if index else "") + "\n" + json.dumps(_feature(row)), nl=False)
    click.echo("\n]}")


def _feature(row: Row) -> dict[str, Any]:
    south, west, north, east = cell_bounds(row["zoom"], row["x"], row["y"])
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": row,
    }
