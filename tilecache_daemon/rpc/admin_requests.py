"""Validation of TileCacheAdmin's requests, and their conversion to models."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from tilecache.identity import MAX_ZOOM, SOURCE_TEXTS
from tilecache.mercator import (
    BoundingBox,
    CellRectangle,
    cells_in_box,
    circle_bounds,
    circle_row,
)
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import Region
from tilecache_daemon.freshness_policy import FreshnessAction, FreshnessRule, SectorClassification
from tilecache_daemon.models import DEFAULT_LIMITS, Purge
from tilecache_daemon.rpc import requests
from tilecache_daemon.rpc.requests import invalid
from tilecache_daemon.service.eviction import EvictionGoal
from tilecache_daemon.service.purge import Area

MAX_NAME_LENGTH: Final = DEFAULT_LIMITS.max_sector_name_characters
MAX_AGE_MONTHS: Final = DEFAULT_LIMITS.max_age_months
MAX_GOAL_BYTES: Final = DEFAULT_LIMITS.max_goal_bytes

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


def purge_zooms(request: pb.DeleteTilesRequest) -> list[int]:
    """The zooms of a deletion; all if none are given."""
    for index, zoom in enumerate(request.zooms):
        if not 0 <= zoom <= MAX_ZOOM:
            raise invalid(f"zooms[{index}]", f"is {zoom}, must be within 0..{MAX_ZOOM}")
    return sorted(set(request.zooms)) or list(range(MAX_ZOOM + 1))


def purge_areas(request: pb.DeleteTilesRequest) -> list[Area]:
    """The cells of a deletion's region, at each of its zooms."""
    zooms, region = purge_zooms(request), request.region
    if region.WhichOneof("area") == "cell_range" and len(zooms) != 1:
        raise invalid("zooms", "must be exactly one if the region is a cell_range")
    # Also validates the region.
    first = requests.region_cells(zooms[0], region)
    if region.WhichOneof("area") == "cell_range":
        return [Area(zooms[0], cells, _always) for cells in first]
    return [area for zoom in zooms for area in _areas(zoom, region)]


def _areas(zoom: int, region: Region) -> Iterator[Area]:
    if region.WhichOneof("area") == "bounding_box":
        for cells in requests.region_cells(zoom, region):
            yield Area(zoom, cells, _always)
        return
    circle = region.circle
    for cells in cells_in_box(
        zoom, circle_bounds(circle.latitude, circle.longitude, circle.radius_meters)
    ):
        yield Area(zoom, cells, _within(zoom, region))


def _within(zoom: int, region: Region) -> Callable[[int, int], bool]:
    circle = region.circle

    @lru_cache(maxsize=4_096)
    def row(y: int) -> list[CellRectangle]:
        return list(circle_row(zoom, circle.latitude, circle.longitude, circle.radius_meters, y))

    return lambda x, y: any(cells.x_from <= x <= cells.x_to for cells in row(y))


def _always(_: int, __: int) -> bool:
    return True


def sector(message: pb.Sector) -> tuple[str, SectorClassification, BoundingBox]:
    """A sector; its box must have an area."""
    name = sector_name("sector.name", message.name)
    classification = requests.choice(
        "sector.classification", _CLASSIFICATIONS, message.classification
    )
    if not message.HasField("bounding_box"):
        raise invalid("sector.bounding_box", "is required")
    field = "sector.bounding_box"
    box = requests.bounding_box(field, message.bounding_box)
    if box.south == box.north:
        raise invalid(f"{field}.north", f"is {box.north}, must differ from south")
    if box.west == box.east:
        raise invalid(f"{field}.east", f"is {box.east}, must differ from west")
    return name, classification, box


def sector_name(field: str, name: str) -> str:
    """A sector's name: printable, without surrounding blanks, MAX_NAME_LENGTH characters at
    most."""
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise invalid(
            field, f"is {name!r}, must be printable text without leading or trailing blanks"
        )
    if len(name) > MAX_NAME_LENGTH:
        raise invalid(field, f"has {len(name)} characters, must have at most {MAX_NAME_LENGTH}")
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
