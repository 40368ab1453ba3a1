"""Boxes as people write them: across the antimeridian, with latitude and longitude exchanged."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import click

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    BoundingBox,
    FreshnessLabel,
    QueryTilesRequest,
    Region,
)
from tilecache_daemon.cli.output import ExitCode, fail

_CALL_TIMEOUT_S: Final = 30
_ALL_LABELS: Final = [number for number in FreshnessLabel.values() if number]

Box = Sequence[float]
"""South, west, north and east in degrees."""


def check_box(box: Box) -> None:
    """Refuses a box that is valid only with latitude and longitude exchanged. Asks whether one
    that crosses the antimeridian and is wider than half the globe is meant; refuses it where
    there is nobody to ask."""
    _, west, _, east = box
    if not _is_in_range(box) and _is_valid(_exchanged(box)):
        fail(
            ExitCode.REFUSED,
            f"--bbox {_text(box)} is out of range; with latitude and longitude exchanged it "
            f"would be valid: --bbox {_text(_exchanged(box))}",
        )
    width = east - west + 360.0
    if _is_in_range(box) and west > east and width > 180.0:
        text = (
            f"--bbox {_text(box)}: west is more than east, so the box crosses the antimeridian "
            f"and is {width:g} degrees wide"
        )
        if not sys.stdin.isatty():
            fail(ExitCode.USAGE, f"{text}; exchange west and east, or give two boxes")
        click.confirm(f"{text}. Is that meant?", abort=True, err=True)


def hint_at_exchange(client: TileCacheClient, zooms: Sequence[int], region: Region | None) -> None:
    """After an empty answer: says on stderr if the box with latitude and longitude exchanged has
    tiles."""
    if region is None or region.WhichOneof("area") != "bounding_box":
        return
    box = region.bounding_box
    south, west, north, east = _exchanged((box.south, box.west, box.north, box.east))
    if not _is_valid((south, west, north, east)):
        return
    exchanged = Region(bounding_box=BoundingBox(south=south, west=west, north=north, east=east))
    for zoom in zooms:
        request = QueryTilesRequest(zoom=zoom, region=exchanged, labels=_ALL_LABELS, limit=1)
        # It may have more cells than a query may: then there is no hint.
        with suppress(CallError):
            answers = client.store.QueryTiles(request, timeout=_CALL_TIMEOUT_S)
            if any(answer.tiles for answer in answers):
                click.echo(
                    "There are no tiles here, but with latitude and longitude exchanged: "
                    f"--bbox {_text((south, west, north, east))}",
                    err=True,
                )
                return


def _exchanged(box: Box) -> tuple[float, float, float, float]:
    south, west, north, east = box
    return west, south, east, north


def _is_in_range(box: Box) -> bool:
    south, west, north, east = box
    return all(-90 <= each <= 90 for each in (south, north)) and all(
        -180 <= each <= 180 for each in (west, east)
    )


def _is_valid(box: Box) -> bool:
    return _is_in_range(box) and box[0] <= box[2]


def _text(box: Box) -> str:
    return ",".join(f"{degrees:g}" for degrees in box)
