"""Calls of TileCacheAdmin."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from tests.tiles import TIMEOUT_S, by_key
from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import (
    ConfirmEvictionsRequest,
    DeletePinRequest,
    DeleteTilesRequest,
    DeletionSummary,
    EvictedTile,
    EvictionSummary,
    EvictTilesRequest,
    ExplainFreshnessRequest,
    ExplainFreshnessResponse,
    FreshnessAction,
    FreshnessRule,
    GetStorageUsageRequest,
    GetStorageUsageResponse,
    ListEvictionsRequest,
    ListPinsRequest,
    Pin,
    ReevaluateFreshnessRequest,
    Sector,
    SectorClassification,
    SetFlightRequest,
    SetFlightResponse,
    SetFreshnessRuleRequest,
    SetFreshnessRuleResponse,
    SetPinRequest,
    SetPinResponse,
    SetSectorRequest,
    SetSectorResponse,
)
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    BoundingBox,
    Flight,
    FreshnessLabel,
    GetTileRequest,
    ListFlightsRequest,
    Region,
    TouchTilesRequest,
)

ACTIVE_CONFLICT = SectorClassification.SECTOR_CLASSIFICATION_ACTIVE_CONFLICT
STABLE_REAR = SectorClassification.SECTOR_CLASSIFICATION_STABLE_REAR
REJECT = FreshnessAction.FRESHNESS_ACTION_REJECT
DOWNGRADE = FreshnessAction.FRESHNESS_ACTION_DOWNGRADE


class Eviction(NamedTuple):
    """The evicted tiles and the summary."""

    tiles: list[EvictedTile]
    summary: EvictionSummary


class Deletion(NamedTuple):
    """The deleted tiles and the summary."""

    tiles: list[EvictedTile]
    summary: DeletionSummary


def evict(client: TileCacheClient, **request: Any) -> Eviction:
    """Runs an eviction to its end."""
    answers = list(client.admin.EvictTiles(EvictTilesRequest(**request), timeout=TIMEOUT_S))
    return Eviction([tile for answer in answers for tile in answer.tiles], answers[-1].summary)


def delete(client: TileCacheClient, **request: Any) -> Deletion:
    """Runs a deletion to its end."""
    answers = list(client.admin.DeleteTiles(DeleteTilesRequest(**request), timeout=TIMEOUT_S))
    return Deletion([tile for answer in answers for tile in answer.tiles], answers[-1].summary)


def read_usage(client: TileCacheClient) -> GetStorageUsageResponse:
    """The current usage."""
    answer: GetStorageUsageResponse = client.admin.GetStorageUsage(
        GetStorageUsageRequest(), timeout=TIMEOUT_S
    )
    return answer


def set_pin(
    client: TileCacheClient,
    name: str,
    region: Region,
    zooms: Sequence[int],
    expires_at: datetime | None = None,
) -> SetPinResponse:
    """Sets a pin."""
    pin = Pin(name=name, region=region, zooms=zooms)
    if expires_at:
        pin.expires_at.FromDatetime(expires_at)
    answer: SetPinResponse = client.admin.SetPin(SetPinRequest(pin=pin), timeout=TIMEOUT_S)
    return answer


def list_pins(client: TileCacheClient, **request: Any) -> list[Pin]:
    """A page of pins."""
    return list(client.admin.ListPins(ListPinsRequest(**request), timeout=TIMEOUT_S).pins)


def delete_pin(client: TileCacheClient, name: str) -> None:
    """Deletes a pin."""
    client.admin.DeletePin(DeletePinRequest(name=name), timeout=TIMEOUT_S)


def set_flight(client: TileCacheClient, flight: Flight) -> Flight:
    """Records a flight; returns it as stored."""
    answer: SetFlightResponse = client.admin.SetFlight(
        SetFlightRequest(flight=flight), timeout=TIMEOUT_S
    )
    return answer.flight


def list_flights(client: TileCacheClient, page_size: int = 0) -> list[Flight]:
    """All flights, page by page."""
    flights: list[Flight] = []
    token = ""
    while True:
        answer = client.store.ListFlights(
            ListFlightsRequest(page_size=page_size, page_token=token), timeout=TIMEOUT_S
        )
        flights += answer.flights
        token = answer.next_page_token
        if not token:
            return flights


def list_evictions(client: TileCacheClient, page_size: int = 0) -> Iterator[EvictedTile]:
    """All listed evictions, page by page."""
    token = ""
    while True:
        answer = client.admin.ListEvictions(
            ListEvictionsRequest(page_size=page_size, page_token=token), timeout=TIMEOUT_S
        )
        yield from answer.tiles
        token = answer.next_page_token
        if not token:
            return


def confirm(client: TileCacheClient, eviction_ids: Sequence[int]) -> list[bool]:
    """Confirms evictions; returns whether each was listed."""
    answer = client.admin.ConfirmEvictions(
        ConfirmEvictionsRequest(eviction_ids=eviction_ids), timeout=TIMEOUT_S
    )
    return list(answer.confirmed)


def set_sector(
    client: TileCacheClient,
    name: str,
    classification: Any,
    box: tuple[float, float, float, float],
) -> SetSectorResponse:
    """Adds or changes a sector; the box is south, west, north and east."""
    sector = Sector(
        name=name,
        classification=classification,
        bounding_box=BoundingBox(**dict(zip(("south", "west", "north", "east"), box, strict=True))),
    )
    answer: SetSectorResponse = client.admin.SetSector(
        SetSectorRequest(sector=sector), timeout=TIMEOUT_S
    )
    return answer


def set_polygon_sector(
    client: TileCacheClient, name: str, classification: Any, region: Region, **request: Any
) -> SetSectorResponse:
    """Sets a sector of a polygon."""
    sector = Sector(name=name, classification=classification, polygon=region.polygon)
    answer: SetSectorResponse = client.admin.SetSector(
        SetSectorRequest(sector=sector, **request), timeout=TIMEOUT_S
    )
    return answer


def set_rule(
    client: TileCacheClient, classification: Any, months: int, action: Any
) -> SetFreshnessRuleResponse:
    """Changes a rule."""
    rule = FreshnessRule(classification=classification, max_age_months=months, action=action)
    answer: SetFreshnessRuleResponse = client.admin.SetFreshnessRule(
        SetFreshnessRuleRequest(rule=rule), timeout=TIMEOUT_S
    )
    return answer


def reevaluate(client: TileCacheClient) -> int:
    """Re-evaluates all labels; returns how many changed."""
    *_, last = client.admin.ReevaluateFreshness(ReevaluateFreshnessRequest(), timeout=TIMEOUT_S)
    return int(last.relabelled_count)


def explain(client: TileCacheClient, key: TileKey) -> ExplainFreshnessResponse:
    """Explains the label of a tile."""
    answer: ExplainFreshnessResponse = client.admin.ExplainFreshness(
        ExplainFreshnessRequest(tile=by_key(key)), timeout=TIMEOUT_S
    )
    return answer


def read_label(client: TileCacheClient, key: TileKey) -> str:
    """The label of a stored tile, as in the database."""
    tile = client.store.GetTile(GetTileRequest(tile=by_key(key)), timeout=TIMEOUT_S).tile
    return FreshnessLabel.Name(tile.freshness_label).removeprefix("FRESHNESS_LABEL_").lower()


def touch(client: TileCacheClient, *keys: TileKey) -> None:
    """Records accesses of tiles, in order."""
    for key in keys:
        client.store.TouchTiles(TouchTilesRequest(tiles=[by_key(key)]), timeout=TIMEOUT_S)


def empty_database(sql: psycopg.Connection[Any]) -> None:
    """Deletes all tiles, evictions, flights, sectors and pins, and restores the rules."""
    sql.execute(
        "TRUNCATE tiles, tile_evictions, flights, sector_classifications, tile_pins, "
        "tile_pin_blocks"
    )
    sql.execute(
        "UPDATE tile_freshness_rules SET (max_age_months, action) = (old.months, old.action) "
        "FROM (VALUES ('active_conflict', 6, 'reject'), ('stable_rear', 12, 'downgrade')) "
        "AS old (classification, months, action) "
        "WHERE tile_freshness_rules.classification = old.classification"
    )
