"""`tilecache pins`."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from tilecache.client import TileCacheClient
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import Region
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    fail,
    json_option,
    print_json_line,
    print_table,
)
from tilecache_daemon.cli.regions import describe_region, region_options, zooms_option
from tilecache_daemon.cli.removal import confirm, removal_options, require_confirmation
from tilecache_daemon.cli.sizes import format_count, format_size, format_tiles
from tilecache_daemon.cli.times import Moment, format_moment, json_time, to_timestamp
from tilecache_daemon.paging import read_pages

CALL_TIMEOUT_S: Final = 300
PAGE_SIZE: Final = 1_000
_COLUMNS: Final = ("name", "region", "zooms", "until", "cells", "holds")


@click.group("pins")
def pins_command() -> None:
    """Set, list and delete pins.

    What a pin covers is neither evicted nor deleted, also what is stored later, unless
    the command says --include-pinned. A pin ends at its time, or when it is deleted.
    """


@pins_command.command("set")
@click.argument("name")
@zooms_option(required=True)
@region_options
@click.option(
    "--until",
    type=Moment(end_of_day=True),
    help="When the pin ends; of a day, at its end (UTC).  [default: when it is deleted]",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be pinned.")
@admin_socket_option
@json_option
def set_pin_command(
    name: str,
    zooms: tuple[int, ...],
    region: Region,
    until: datetime | None,
    dry_run: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Pin a region as NAME, or change the pin NAME.

    Warns if what is pinned, what waits for upload and what is still missing do not fit
    under the ceiling together.

    \b
    tilecache pins set tomorrow --zoom 13-15 --route mission.plan --width 2000
    tilecache pins set base --zoom 16-18 --circle 50.45,30.52,5000 --until 2026-12-24
    """
    pin = pb.Pin(name=name, region=region, zooms=zooms, expires_at=to_timestamp(until))
    with connect(socket_path) as client:
        answer = client.admin.SetPin(
            pb.SetPinRequest(pin=pin, dry_run=dry_run), timeout=CALL_TIMEOUT_S
        )
    if as_json:
        print_json_line(_to_dict(answer.pin) | {"dry_run": dry_run, **_fit_to_dict(answer)})
    else:
        would = "Would pin" if dry_run else "Pinned"
        click.echo(
            f"{would} {name}: {format_count(answer.pin.cell_count, 'cell')}, "
            f"{format_tiles(answer.pin.held.tile_count, answer.pin.held.used_bytes)}, "
            f"{answer.missing_count:,} missing."
        )
    if not answer.fits:
        click.echo(
            f"WARNING: {format_size(answer.kept_bytes)} are pinned or wait for upload, and about "
            f"{format_size(answer.missing_bytes)} are missing: more than the ceiling "
            f"({format_size(answer.max_used_bytes)}).",
            err=True,
        )


@pins_command.command("list")
@admin_socket_option
@json_option
def list_pins_command(socket_path: Path, as_json: bool) -> None:
    """List the pins, by name, those that have ended, too."""
    with connect(socket_path) as client:
        pins = list(read_pins(client))
        usage = client.admin.GetStorageUsage(pb.GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S)
    if as_json:
        for pin in pins:
            print_json_line(_to_dict(pin))
        print_json_line(
            {
                "kind": "summary",
                "pins": len(pins),
                "tile_count": usage.pinned.tile_count,
                "used_bytes": usage.pinned.used_bytes,
            }
        )
    else:
        print_table(_COLUMNS, map(_row, pins))


@pins_command.command("delete")
@click.argument("name")
@removal_options
@admin_socket_option
@json_option
def delete_pin_command(
    name: str, dry_run: bool, yes: bool, socket_path: Path, as_json: bool
) -> None:
    """Delete the pin NAME. Its tiles may be evicted from then on."""
    require_confirmation(yes=yes, dry_run=dry_run)
    with connect(socket_path) as client:
        pin = next((pin for pin in read_pins(client) if pin.name == name), None)
        if pin is None:
            fail(ExitCode.IN_PART, f"there is no pin {name!r}")
        if not (yes or dry_run):
            held = format_tiles(pin.held.tile_count, pin.held.used_bytes)
            confirm(f"This deletes pin {name}, which holds {held}. Continue?")
        if not dry_run:
            client.admin.DeletePin(pb.DeletePinRequest(name=name), timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json_line(_to_dict(pin) | {"dry_run": dry_run})
    elif dry_run:
        click.echo(f"Would delete pin {name}. Nothing was changed.")
    else:
        click.echo(f"Deleted pin {name}.")


def read_pins(client: TileCacheClient) -> Iterator[pb.Pin]:
    """All pins, by name."""
    request = pb.ListPinsRequest(page_size=PAGE_SIZE)
    for page in read_pages(client.admin.ListPins, request, CALL_TIMEOUT_S):
        yield from page.pins


def _row(pin: pb.Pin) -> tuple[str, ...]:
    until = "deleted"
    if pin.HasField("expires_at"):
        until = format_moment(pin.expires_at) + (" (ended)" if pin.ended else "")
    return (
        pin.name,
        describe_region(pin.region),
        ",".join(map(str, pin.zooms)),
        until,
        f"{pin.cell_count:,}",
        format_tiles(pin.held.tile_count, pin.held.used_bytes),
    )


def _to_dict(pin: pb.Pin) -> dict[str, Any]:
    return {
        "kind": "pin",
        "name": pin.name,
        "region": describe_region(pin.region),
        "zooms": ",".join(map(str, pin.zooms)),
        "expires_at": json_time(pin.expires_at) if pin.HasField("expires_at") else None,
        "created_at": json_time(pin.created_at) if pin.HasField("created_at") else None,
        "ended": pin.ended,
        "cell_count": pin.cell_count,
        "tile_count": pin.held.tile_count,
        "used_bytes": pin.held.used_bytes,
    }


def _fit_to_dict(answer: pb.SetPinResponse) -> dict[str, Any]:
    return {
        "missing_count": answer.missing_count,
        "missing_bytes": answer.missing_bytes,
        "kept_bytes": answer.kept_bytes,
        "max_used_bytes": answer.max_used_bytes,
        "fits": answer.fits,
    }
