"""`tilecache flights`."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from tilecache.client import TileCacheClient
from tilecache.v1 import tile_cache_admin_pb2 as admin_pb
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    fail,
    json_option,
    print_json_line,
    print_table,
    socket_option,
)
from tilecache_daemon.cli.removal import confirm, removal_options, require_confirmation
from tilecache_daemon.cli.sizes import format_tiles
from tilecache_daemon.cli.times import Moment, format_moment, json_time, to_timestamp
from tilecache_daemon.paging import read_pages

CALL_TIMEOUT_S: Final = 60
PAGE_SIZE: Final = 1_000
_COLUMNS: Final = ("flight", "name", "captured", "tiles", "pending upload", "area")
_BOX: Final = ("south", "west", "north", "east")


class _ListByDefault(click.Group):
    """Runs `list` if no subcommand is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("flights", cls=_ListByDefault)
def flights_command() -> None:
    """List the flights and their tiles, and name them.

    Without a subcommand: list.
    """


@flights_command.command("list")
@socket_option
@json_option
def list_flights_command(socket_path: Path, as_json: bool) -> None:
    """List the flights, the earliest first.

    Also those that only tiles tell of. With --json: JSON Lines, one flight a line, then
    the summary.
    """
    with connect(socket_path) as client:
        flights = sorted(read_flights(client), key=_start)
    if as_json:
        for flight in flights:
            print_json_line(_to_dict(flight))
        print_json_line(
            {
                "kind": "summary",
                "flights": len(flights),
                "tile_count": sum(flight.tile_count for flight in flights),
                "used_bytes": sum(flight.used_bytes for flight in flights),
                "pending_upload_count": sum(flight.pending_upload_count for flight in flights),
                "pending_upload_bytes": sum(flight.pending_upload_bytes for flight in flights),
            }
        )
    else:
        print_table(_COLUMNS, map(_row, flights))


@flights_command.command("set")
@click.argument("flight_id", metavar="UUID")
@click.option("--name", default="", help="The name of the flight.")
@click.option("--start", type=Moment(), help="When it started (UTC).")
@click.option("--end", type=Moment(end_of_day=True), help="When it ended (UTC).")
@admin_socket_option
@json_option
def set_flight_command(
    flight_id: str,
    name: str,
    start: datetime | None,
    end: datetime | None,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Record the name and times of the flight UUID, in place of those recorded before.

    \b
    tilecache flights set 3f2504e0-4f89-41d3-9a0c-0305e82c3301 --name 'survey north' \\
        --start '2026-12-24 06:00' --end '2026-12-24 08:30'
    """
    flight = pb.Flight(
        flight_id=flight_id,
        name=name,
        started_at=to_timestamp(start),
        ended_at=to_timestamp(end),
    )
    with connect(socket_path) as client:
        answer = client.admin.SetFlight(
            admin_pb.SetFlightRequest(flight=flight), timeout=CALL_TIMEOUT_S
        )
    if as_json:
        print_json_line(_to_dict(answer.flight))
    else:
        click.echo(f"Recorded flight {_title(answer.flight)}, with {_tiles(answer.flight)}.")


@flights_command.command("delete")
@click.argument("flight_id", metavar="UUID")
@removal_options
@admin_socket_option
@json_option
def delete_flight_command(
    flight_id: str, dry_run: bool, yes: bool, socket_path: Path, as_json: bool
) -> None:
    """Delete the name and times of the flight UUID. Its tiles stay."""
    require_confirmation(yes=yes, dry_run=dry_run)
    with connect(socket_path) as client:
        flights = (each for each in read_flights(client) if each.flight_id == flight_id.lower())
        flight = next(flights, None)
        if flight is None or not flight.recorded:
            fail(ExitCode.IN_PART, f"flight {flight_id} has no recorded name or times")
        if not (yes or dry_run):
            confirm(
                f"This deletes the name and times of flight {_title(flight)}, not its tiles. "
                "Continue?"
            )
        if not dry_run:
            client.admin.DeleteFlight(
                admin_pb.DeleteFlightRequest(flight_id=flight_id), timeout=CALL_TIMEOUT_S
            )
    if as_json:
        print_json_line(_to_dict(flight) | {"dry_run": dry_run})
    elif dry_run:
        click.echo(f"Would delete flight {_title(flight)}. Nothing was changed.")
    else:
        click.echo(f"Deleted flight {_title(flight)}; {_tiles(flight)} stay.")


def read_flights(client: TileCacheClient) -> Iterator[pb.Flight]:
    """All flights, by id."""
    request = pb.ListFlightsRequest(page_size=PAGE_SIZE)
    for page in read_pages(client.store.ListFlights, request, CALL_TIMEOUT_S):
        yield from page.flights


def _start(flight: pb.Flight) -> tuple[int, int]:
    """When a flight started, else its first capture; those of unknown time come last."""
    for field in ("started_at", "first_captured_at"):
        if flight.HasField(field):
            return 0, getattr(flight, field).ToNanoseconds()
    return 1, 0


def _title(flight: pb.Flight) -> str:
    return f"{flight.flight_id} ({flight.name})" if flight.name else flight.flight_id


def _tiles(flight: pb.Flight) -> str:
    return format_tiles(flight.tile_count, flight.used_bytes)


def _row(flight: pb.Flight) -> tuple[str, ...]:
    captured = area = "none"
    if flight.tile_count:
        captured = (
            f"{format_moment(flight.first_captured_at)} to {format_moment(flight.last_captured_at)}"
        )
    if flight.HasField("bounds"):
        area = ",".join(f"{getattr(flight.bounds, name):.4f}" for name in _BOX)
    return (
        flight.flight_id,
        flight.name,
        captured,
        _tiles(flight),
        format_tiles(flight.pending_upload_count, flight.pending_upload_bytes),
        area,
    )


def _to_dict(flight: pb.Flight) -> dict[str, Any]:
    given = {field.name: value for field, value in flight.ListFields()}
    times = ("started_at", "ended_at", "first_captured_at", "last_captured_at")
    bounds = given.get("bounds")
    return {
        "kind": "flight",
        "flight_id": flight.flight_id,
        "name": flight.name or None,
        "recorded": flight.recorded,
        **{name: json_time(given[name]) if name in given else None for name in times},
        "tile_count": flight.tile_count,
        "used_bytes": flight.used_bytes,
        "pending_upload_count": flight.pending_upload_count,
        "pending_upload_bytes": flight.pending_upload_bytes,
        **{name: getattr(bounds, name) if bounds else None for name in _BOX},
    }
