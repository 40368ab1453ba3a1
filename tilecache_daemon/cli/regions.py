"""The region options, shared by several commands."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from tilecache.v1.tile_metadata_store_pb2 import BoundingBox, CellRange, Circle, Region

Number = TypeVar("Number", int, float)
Numbers = Sequence[Number] | None


def _numbers_option(
    name: str, parts: str, kind: Callable[[str], Number], text: str, *, required: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option whose value is numbers separated by commas."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> Numbers[Number]:
        if value is None:
            return None
        texts = value.split(",")
        if len(texts) != len(parts.split(",")):
            raise click.BadParameter(f"{value!r} is not {parts}")
        try:
            return [kind(text) for text in texts]
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not {parts}: {error}") from error

    return click.option(name, metavar=parts, callback=parse, required=required, help=text)


def box_option(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --bbox; the command gets its four numbers as `bbox`."""
    return _numbers_option(
        "--bbox",
        "SOUTH,WEST,NORTH,EAST",
        float,
        "Bounding box in degrees. WEST is greater than EAST across the antimeridian.",
        required=required,
    )


def region_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --bbox, --circle and --cells, exactly one of which is required; the command
    gets it as `region`."""
    return _region_options(command, _choose)


def optional_region_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `region_options`, but all may be omitted; then `region` is None."""

    def choose(*areas: Any) -> Region | None:
        return None if areas == (None, None, None) else _choose(*areas)

    return _region_options(command, choose)


def _region_options(
    command: Callable[..., Any], choose: Callable[..., Region | None]
) -> Callable[..., Any]:
    @box_option(required=False)
    @_numbers_option("--circle", "LAT,LON,METRES", float, "Circle around a point.")
    @_numbers_option(
        "--cells", "X_FROM,X_TO,Y_FROM,Y_TO", int, "Range of cells, both ends included."
    )
    @functools.wraps(command)
    def with_region(
        *args: Any,
        bbox: Numbers[float],
        circle: Numbers[float],
        cells: Numbers[int],
        **options: Any,
    ) -> Any:
        return command(*args, region=choose(bbox, circle, cells), **options)

    return with_region


def _choose(bbox: Numbers[float], circle: Numbers[float], cells: Numbers[int]) -> Region:
    if sum(area is not None for area in (bbox, circle, cells)) != 1:
        raise click.UsageError("Give exactly one of --bbox, --circle and --cells.")
    if bbox is not None:
        south, west, north, east = bbox
        return Region(bounding_box=BoundingBox(south=south, west=west, north=north, east=east))
    if circle is not None:
        latitude, longitude, radius = circle
        return Region(circle=Circle(latitude=latitude, longitude=longitude, radius_meters=radius))
    assert cells is not None
    x_from, x_to, y_from, y_to = cells
    try:
        return Region(cell_range=CellRange(x_from=x_from, x_to=x_to, y_from=y_from, y_to=y_to))
    except ValueError as error:
        raise click.UsageError(f"--cells: {error}") from error
