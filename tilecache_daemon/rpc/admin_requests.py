"""Validation of TileCacheAdmin's requests, and their conversion to models."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.identity import MAX_ZOOM, NO_FLIGHT_UUID, SOURCE_TEXTS
from tilecache.mercator import BoundingBox, CellRectangle
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1 import tile_metadata_store_pb2 as store_pb
from tilecache_daemon.errors import InvalidRequestError, LimitExceededError
from tilecache_daemon.freshness_policy import (
    FreshnessAction,
    FreshnessRule,
    SectorArea,
    SectorClassification,
)
from tilecache_daemon.geometry.areas import ROUNDING_CELLS, Area, cells_in_areas
from tilecache_daemon.models import DEFAULT_LIMITS, ExpectedFile, NewFlight, NewPin, Purge
from tilecache_daemon.rpc import regions, requests
from tilecache_daemon.rpc.requests import invalid
from tilecache_daemon.service.eviction import EvictionGoal
from tilecache_daemon.service.purge import PurgeArea

MAX_NAME_LENGTH: Final = DEFAULT_LIMITS.max_sector_name_characters
MAX_AGE_MONTHS: Final = DEFAULT_LIMITS.max_age_months
MAX_GOAL_BYTES: Final = DEFAULT_LIMITS.max_goal_bytes

_MAX_COVERING_RECTANGLES: Final = 64
"""Each takes a statement at each zoom."""
_FILTERS: Final = ("region", "zooms", "sources", "captured_before", "flight_id")
_CLASSIFICATIONS: Final = dict(enumerate(SectorClassification, start=1))
_ACTIONS: Final = dict(enumerate(FreshnessAction, start=1))


def eviction_goal(request: pb.EvictTilesRequest) -> EvictionGoal:
    """The goal of an eviction."""
    match request.WhichOneof("goal"):
        case "max_used_bytes":
            return EvictionGoal(max_used_bytes=_goal("max_used_bytes", request.max_used_bytes, 0))
        case "free_bytes":
            return EvictionGoal(free_bytes=_goal("free_bytes", request.free_bytes, 1))
    raise invalid("goal", "is required: set max_used_bytes or free_bytes")


def _goal(field: str, value: int, least: int) -> int:
    if not least <= value <= MAX_GOAL_BYTES:
        raise invalid(field, f"is {value}, must be within {least}..{MAX_GOAL_BYTES}")
    return value


def purge(request: pb.DeleteTilesRequest) -> Purge:
    """The filters of a deletion. Raises InvalidRequestError for filters in addition to ids, and
    for neither filters nor ids."""
    given = [field.name for field, _ in request.ListFields() if field.name in _FILTERS]
    if request.tile_uuids and given:
        raise invalid(given[0], "must not be combined with tile_uuids")
    if request.expected_files and not request.tile_uuids:
        raise invalid("expected_files", "must not be given without tile_uuids")
    if not request.tile_uuids and not given:
        raise invalid("tile_uuids", "must not be empty without a filter: it would delete all tiles")
    captured_before = None
    if request.HasField("captured_before"):
        captured_before = requests.moment("captured_before", request.captured_before)
    return Purge(
        list(requests.each("sources", SOURCE_TEXTS, request.sources)) or None,
        captured_before,
        requests.optional_flight(request),
    )


def expected_files(request: pb.DeleteTilesRequest) -> dict[str, ExpectedFile]:
    """What the tiles of a deletion must still have, by id; nothing if any may be deleted."""
    expected, ids = request.expected_files, request.tile_uuids
    if expected and len(expected) != len(ids):
        raise invalid("expected_files", f"has {len(expected)} items, tile_uuids has {len(ids)}")
    files = (ExpectedFile(each.file_path, each.content_sha256) for each in expected)
    return dict(zip(ids, files, strict=False))


def purge_zooms(request: pb.DeleteTilesRequest) -> list[int]:
    """The zooms of a deletion; all if none are given."""
    return requests.each_zoom(request.zooms) or list(range(MAX_ZOOM + 1))


def purge_areas(request: pb.DeleteTilesRequest) -> list[PurgeArea]:
    """The cells of a deletion's region, at each of its zooms."""
    zooms, region = purge_zooms(request), request.region
    regions.check_zooms(zooms, region)
    if region.WhichOneof("area") in ("bounding_box", "cell_range"):
        return [
            PurgeArea(zoom, cells, _always)
            for zoom in zooms
            for cells in regions.region_cells(zoom, region)
        ]
    areas = regions.areas(zooms[0], region)
    contains = regions.cell_filter(zooms, region)
    return [
        PurgeArea(zoom, cells, partial(contains, zoom))
        for zoom in zooms
        for cells in _cover(zoom, areas)
    ]


def _cover(zoom: int, areas: Sequence[Area]) -> Iterator[CellRectangle]:
    """Some rectangles that cover all cells of areas. They are cells of a coarser zoom: the box
    around a route has far more tiles than the route."""
    coarse, covering = 0, [CellRectangle(0, 0, 0, 0)]
    for finer in range(zoom + 1):
        cells = cells_in_areas(finer, areas, rounding_cells=-ROUNDING_CELLS)
        rectangles = list(islice(cells, _MAX_COVERING_RECTANGLES + 1))
        if len(rectangles) > _MAX_COVERING_RECTANGLES:
            break
        coarse, covering = finer, rectangles
    bits = zoom - coarse

    for x_from, x_to, y_from, y_to in covering:
        yield CellRectangle(
            x_from << bits, (x_to + 1 << bits) - 1, y_from << bits, (y_to + 1 << bits) - 1
        )


def _always(_: int, __: int) -> bool:
    return True


def sector(message: pb.Sector) -> tuple[str, SectorClassification, SectorArea]:
    """A sector; its box must have an area."""
    name = sector_name("sector.name", message.name)
    classification = requests.choice(
        "sector.classification", _CLASSIFICATIONS, message.classification
    )
    if message.HasField("polygon"):
        return name, classification, _polygon_area("sector.polygon", message.polygon)
    field = "sector.bounding_box"
    if not message.HasField("bounding_box"):
        raise invalid(field, "is required, unless polygon is given")
    box = regions.bounding_box(field, message.bounding_box)
    if box.south == box.north:
        raise invalid(f"{field}.north", f"is {box.north}, must differ from south")
    if box.west == box.east:
        raise invalid(f"{field}.east", f"is {box.east}, must differ from west")
    return name, classification, SectorArea(box)


def _polygon_area(field: str, message: store_pb.Polygon) -> SectorArea:
    count, most = regions.count_points(message), DEFAULT_LIMITS.max_sector_points
    if count > most:
        raise LimitExceededError(
            FieldViolation(field, f"has {count} points, must have at most {most}")
        )
    polygon = regions.polygon(field, message)
    south, north = polygon.latitudes
    west, east = polygon.longitudes
    if east - west >= 360.0:
        raise invalid(field, "spans 360 degrees of longitude")
    return SectorArea(BoundingBox(south, west, north, _wrapped(east)), polygon)


def _wrapped(east: float) -> float:
    return east if east <= 180.0 else east - 360.0


def new_pin(message: pb.Pin) -> tuple[NewPin, list[tuple[int, Iterable[CellRectangle]]]]:
    """A pin, and the cells of its region at each of its zooms."""
    name = pin_name("pin.name", message.name)
    expires_at = None
    if message.HasField("expires_at"):
        expires_at = requests.moment("pin.expires_at", message.expires_at)
    try:
        zooms = requests.each_zoom(message.zooms)
        if not zooms:
            raise invalid("zooms", "must not be empty")
        cells = regions.region_cells_at(zooms, message.region)
    except InvalidRequestError as error:
        raise error.within("pin") from None
    return NewPin(name, message.region.SerializeToString(), tuple(zooms), expires_at), cells


def pin_name(field: str, name: str) -> str:
    """A pin's name, as a sector's."""
    return _name(field, name, DEFAULT_LIMITS.max_pin_name_characters)


def new_flight(message: store_pb.Flight) -> NewFlight:
    """The name and times of a flight; it must not end before it starts."""
    flight_id = requests.uuid_text("flight.flight_id", message.flight_id)
    if flight_id == str(NO_FLIGHT_UUID):
        raise invalid("flight.flight_id", "must not be the UUID that stands for no flight")
    name, most = message.name, DEFAULT_LIMITS.max_flight_name_characters
    started_at, ended_at = (
        requests.moment(f"flight.{field}", getattr(message, field))
        if message.HasField(field)
        else None
        for field in ("started_at", "ended_at")
    )
    if started_at and ended_at and ended_at < started_at:
        raise invalid("flight.ended_at", f"is {ended_at}, must not be before started_at")
    return NewFlight(
        flight_id, _name("flight.name", name, most) if name else "", started_at, ended_at
    )


def sector_name(field: str, name: str) -> str:
    """A sector's name: printable, without surrounding blanks, MAX_NAME_LENGTH characters at
    most."""
    return _name(field, name, MAX_NAME_LENGTH)


def _name(field: str, name: str, most: int) -> str:
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise invalid(
            field, f"is {name!r}, must be printable text without leading or trailing blanks"
        )
    if len(name) > most:
        raise invalid(field, f"has {len(name)} characters, must have at most {most}")
    return name


def freshness_rule(message: pb.FreshnessRule) -> FreshnessRule:
    """A rule with a known classification and action, and an age in range."""
    classification = requests.choice(
        "rule.classification", _CLASSIFICATIONS, message.classification
    )
    if not 1 <= message.max_age_months <= MAX_AGE_MONTHS:
        raise invalid(
            "rule.max_age_months",
            f"is {message.max_age_months}, must be within 1..{MAX_AGE_MONTHS}",
        )
    action = requests.choice("rule.action", _ACTIONS, message.action)
    return FreshnessRule(classification, message.max_age_months, action)


def after_id(page_token: str) -> int:
    """The last id of the previous page; 0 for the first page."""
    if not page_token:
        return 0
    if not (page_token.isascii() and page_token.isdigit() and len(page_token) <= 18):
        raise invalid("page_token", "must be a token of a previous page")
    return int(page_token)


def eviction_ids(request: pb.ConfirmEvictionsRequest, most: int) -> list[int]:
    """The ids of evictions; at most `most`, all positive."""
    requests.check_count("eviction_ids", len(request.eviction_ids), most)
    for index, eviction_id in enumerate(request.eviction_ids):
        if eviction_id <= 0:
            raise invalid(f"eviction_ids[{index}]", f"is {eviction_id}, must be at least 1")
    return list(request.eviction_ids)
