"""Are rows counted from the north (XYZ) or from the south (TMS)?

A source rarely says so in a way that can be relied on, and the wrong answer mirrors every
latitude. So all that it says is compared: its format's rule, the files or fields that
name a scheme, and its bounds, which fit to its rows in one of the schemes only, unless
they are symmetric to the equator.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from tilecache_daemon.ingest.errors import SourceError

_MAX_DESCRIPTION_BYTES: Final = 1024 * 1024
_EARTH_RADIUS_M: Final = 6_378_137.0
_MAX_LATITUDE: Final = 85.0511287798066
_PROFILES: Final = ("mercator", "global-mercator")
_TILE_MAP: Final = "tilemapresource.xml"
_TILE_JSON: Final = ("metadata.json", "tiles.json", "tilejson.json")


class Scheme(str, Enum):
    """How rows are counted."""

    XYZ = "xyz"
    """From the north."""
    TMS = "tms"
    """From the south."""

    def flip(self, zoom: int, row: int) -> int:
        """Converts a row to one that is counted from the north, or back."""
        return row if self is Scheme.XYZ else (1 << zoom) - 1 - row


class AmbiguousRowsError(SourceError):
    """What a source says about its rows contradicts itself or cannot be read."""


class Statement(NamedTuple):
    """Who says which scheme."""

    scheme: Scheme
    origin: str


class Rows(NamedTuple):
    """The lowest and highest row of a zoom level, as they are counted in the source."""

    zoom: int
    lowest: int
    highest: int


class Latitudes(NamedTuple):
    """Where the tiles are, in degrees."""

    south: float
    north: float


class Description(NamedTuple):
    """What a source says about its rows."""

    statements: Sequence[Statement] = ()
    latitudes: Sequence[Latitudes] = ()


def choose_scheme(given: Scheme | None, detect: Callable[[], Scheme]) -> Scheme:
    """The scheme that the user has given, else the detected one; raises SourceError."""
    try:
        detected = detect()
    except AmbiguousRowsError:
        if given is None:
            raise
        return given
    return given or detected


def detect_scheme(
    path: Path, description: Description, find_rows: Callable[[], Rows | None]
) -> Scheme:
    """The scheme that the statements and the bounds agree on.

    Bounds decide between statements that differ, but do not overrule all of them.
    Without either, rows are counted from the north. Raises AmbiguousRowsError.
    """
    statements = list(description.statements)
    stated = {statement.scheme for statement in statements}
    rows = find_rows() if description.latitudes else None
    fitting = [_fit(latitudes, rows) for latitudes in description.latitudes if rows]
    if any(not fits for fits in fitting):
        raise _ambiguous(path, "its bounds fit to its rows in neither way")
    by_bounds = {fits[0] for fits in fitting if len(fits) == 1}
    if len(by_bounds) == 1 and (not stated or by_bounds <= stated):
        return by_bounds.pop()
    if len(stated) == 1 and not by_bounds:
        return stated.pop()
    if not stated and not by_bounds:
        return Scheme.XYZ
    statements += [Statement(scheme, "its bounds") for scheme in sorted(by_bounds)]
    raise _ambiguous(path, ", ".join(f"{said.origin}: {said.scheme.value}" for said in statements))


def describe_directory(path: Path) -> Description:
    """What the files beside the zoom levels say; raises SourceError."""
    statements: list[Statement] = []
    latitudes: list[Latitudes] = []
    for name in _TILE_JSON:
        content = _read_description(path / name)
        if content is not None:
            described = describe_fields(path, _parse_json(path, name, content), name)
            statements += described.statements
            latitudes += described.latitudes
    content = _read_description(path / _TILE_MAP)
    if content is not None:
        statements.append(Statement(Scheme.TMS, _TILE_MAP))
        latitudes += _read_tile_map(path, content)
    return Description(statements, latitudes)


def describe_fields(path: Path, fields: Mapping[str, Any], origin: str) -> Description:
    """What the fields of a TileJSON or of an MBTiles file's metadata say; raises SourceError."""
    _check_profile(path, fields.get("profile"), origin)
    stated = str(fields.get("scheme", "")).strip().lower()
    statements = [Statement(scheme, origin) for scheme in Scheme if scheme.value == stated]
    bounds = fields.get("bounds")
    return Description(statements, find_latitudes(bounds))


def find_latitudes(bounds: object) -> list[Latitudes]:
    """The latitudes of bounds (west, south, east, north), unless they are no bounds."""
    parts = bounds.split(",") if isinstance(bounds, str) else bounds
    if not isinstance(parts, list | tuple) or len(parts) != 4:
        return []
    with suppress(TypeError, ValueError):
        west, south, east, north = map(float, parts)
        if max(map(abs, (west, south, east, north))) > 360:
            south, north = _degrees(south), _degrees(north)
        if -90 <= south < north <= 90:
            return [Latitudes(south, north)]
    return []


def _fit(latitudes: Latitudes, rows: Rows) -> list[Scheme]:
    """The schemes in which the rows lie within the latitudes; else those in which they overlap."""
    expected = range(
        _row_of(latitudes.north, rows.zoom) - 1, _row_of(latitudes.south, rows.zoom) + 2
    )
    within, overlapping = [], []
    for scheme in Scheme:
        ends = (scheme.flip(rows.zoom, row) for row in (rows.lowest, rows.highest))
        first, last = sorted(ends)
        if first in expected and last in expected:
            within.append(scheme)
        if last >= expected[0] and first <= expected[-1]:
            overlapping.append(scheme)
    return within or overlapping


def _row_of(latitude: float, zoom: int) -> int:
    """The row that contains a latitude, counted from the north."""
    clipped = math.radians(max(-_MAX_LATITUDE, min(_MAX_LATITUDE, latitude)))
    return math.floor((1 - math.asinh(math.tan(clipped)) / math.pi) / 2 * (1 << zoom))


def _degrees(northing_m: float) -> float:
    return math.degrees(math.atan(math.sinh(northing_m / _EARTH_RADIUS_M)))


def _read_description(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_DESCRIPTION_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _ambiguous(path.parent, f"{path.name}: {error.strerror}") from error


def _parse_json(path: Path, name: str, content: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _ambiguous(path, f"{name} cannot be read as JSON") from error
    return parsed if isinstance(parsed, dict) else {}


def _read_tile_map(path: Path, content: bytes) -> list[Latitudes]:
    try:
        tile_map = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise _ambiguous(path, f"{_TILE_MAP} cannot be read as XML") from error
    sets = tile_map.find("TileSets")
    _check_profile(path, None if sets is None else sets.get("profile"), _TILE_MAP)
    box = tile_map.find("BoundingBox")
    # With this name of the projection, gdal2tiles wrote south, west, north, east.
    if box is None or "900913" in (tile_map.findtext("SRS") or ""):
        return []
    return find_latitudes([box.get(name) for name in ("minx", "miny", "maxx", "maxy")])


def _check_profile(path: Path, profile: object, origin: str) -> None:
    if isinstance(profile, str) and profile.lower() not in _PROFILES:
        raise SourceError(
            f"{path}: its tiles are not in Web Mercator ({origin}: profile {profile[:40]!r})"
        )


def _ambiguous(path: Path, why: str) -> AmbiguousRowsError:
    return AmbiguousRowsError(
        f"{path}: not clear whether its rows are counted from the north (xyz) or from the south "
        f"(tms): {why}. Say which with --scheme"
    )
