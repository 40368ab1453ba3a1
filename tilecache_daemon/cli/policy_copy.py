"""Sectors, rules, pins and flights that are copied from one daemon to another."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import Flight
from tilecache_daemon.cli.flights import read_flights
from tilecache_daemon.cli.output import connect
from tilecache_daemon.cli.pins import read_pins
from tilecache_daemon.cli.policy import read_sectors
from tilecache_daemon.cli.sizes import format_count

CALL_TIMEOUT_S: Final = 60
RELABEL_TIMEOUT_S: Final = 3_600
_OF_FLIGHT: Final = ("flight_id", "name", "started_at", "ended_at")

PolicyItem = pb.Sector | pb.FreshnessRule | pb.Pin


def read_policy(admin_socket_path: Path) -> list[PolicyItem]:
    """The sectors, rules and pins that another daemon can be given."""
    with connect(admin_socket_path) as client:
        # Those of schema 0001 have no area.
        sectors = [each for each in read_sectors(client) if each.HasField("bounding_box")]
        rules = client.admin.ListFreshnessRules(
            pb.ListFreshnessRulesRequest(), timeout=CALL_TIMEOUT_S
        ).rules
        pins = [pin for pin in read_pins(client) if not pin.ended]
    for sector in sectors:
        sector.ClearField("created_at")
        if sector.HasField("polygon"):
            sector.ClearField("bounding_box")
    for pin in pins:
        for name in ("created_at", "ended", "cell_count", "held"):
            pin.ClearField(name)
    return [*sectors, *rules, *pins]


def apply_policy(
    client: TileCacheClient, items: Iterable[PolicyItem]
) -> tuple[list[PolicyItem], list[str]]:
    """Sets sectors, rules and pins; returns those that were set, and those that were refused, each
    with the reason."""
    done: list[PolicyItem] = []
    problems: list[str] = []
    for item in items:
        try:
            match item:
                case pb.Sector():
                    name = f"sector {item.name}"
                    client.admin.SetSector(
                        pb.SetSectorRequest(sector=item), timeout=RELABEL_TIMEOUT_S
                    )
                case pb.FreshnessRule():
                    name = f"rule of {pb.SectorClassification.Name(item.classification)}"
                    client.admin.SetFreshnessRule(
                        pb.SetFreshnessRuleRequest(rule=item), timeout=RELABEL_TIMEOUT_S
                    )
                case pb.Pin():
                    name = f"pin {item.name}"
                    client.admin.SetPin(pb.SetPinRequest(pin=item), timeout=RELABEL_TIMEOUT_S)
            done.append(item)
        except CallError as error:
            problems.append(f"Not set: {name}: {error.message}")
    return done, problems


def record_flights(client: TileCacheClient, flights: Iterable[Flight]) -> tuple[int, list[str]]:
    """Records the names and times of flights, unless others are recorded; returns how many were
    recorded now, and what was not."""
    recorded = {flight.flight_id: flight for flight in read_flights(client) if flight.recorded}
    done, problems = 0, []
    for flight in flights:
        existing = recorded.get(flight.flight_id)
        if existing is not None:
            if _values(existing) != _values(flight):
                problems.append(
                    f"Not recorded: flight {flight.flight_id} ({flight.name}): it has other "
                    f"recorded values ({existing.name})"
                )
            continue
        try:
            client.admin.SetFlight(pb.SetFlightRequest(flight=flight), timeout=CALL_TIMEOUT_S)
            done += 1
        except CallError as error:
            problems.append(f"Not recorded: flight {flight.flight_id}: {error.message}")
    return done, problems


def describe_policy(items: Iterable[PolicyItem]) -> str:
    """How many sectors, rules and pins."""
    items = list(items)
    kinds = (("sector", pb.Sector), ("rule", pb.FreshnessRule), ("pin", pb.Pin))
    return ", ".join(
        format_count(sum(isinstance(item, kind) for item in items), noun) for noun, kind in kinds
    )


def _values(flight: Flight) -> list[object]:
    return [getattr(flight, name) for name in _OF_FLIGHT]
