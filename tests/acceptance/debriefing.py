"""The part of the demo that brings a flight to the ground: a second daemon gets all of it."""

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.acceptance.flight import BOX
from tests.daemon_process import DaemonProcess
from tests.imagery import cut_blue_marble
from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM
from tilecache.v1.tile_metadata_store_pb2 import DescribeBlocksRequest

FLIGHT_ID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
NAME = "survey north"
ZOOM = 13
CALL_TIMEOUT_S = 60.0

Operate = Callable[..., Any]
Check = Callable[..., None]


def debrief_flight(
    operate: Operate,
    check: Check,
    aircraft: DaemonProcess,
    ground: DaemonProcess,
    directory: Path,
    tiles: tuple[Path, Path],
) -> None:
    """Copies what the aircraft made, marks it as uploaded, then fetches the rest. `tiles` are the
    tile directories of the aircraft and of the ground; `operate` runs a command on a daemon."""
    made = tiles[0] / "flight"
    cut_blue_marble(made, ZOOM, ZOOM, BOX)
    now = datetime.now(timezone.utc).isoformat()
    onboard = ("--source", "onboard_ingest", "--flight", FLIGHT_ID, "--captured-at", now)
    imported = operate(aircraft, "import", made, *onboard, quiet=True)
    operate(aircraft, "flights", "set", FLIGHT_ID, "--name", NAME)
    flight = _first(operate(aircraft, "flights", "--json", quiet=True))
    count = sum(1 for _ in made.rglob("*.jpg"))
    check(
        f"the {count} tiles that the aircraft made wait for upload",
        imported.returncode == 0 and flight["pending_upload_count"] == count > 0,
        imported.stderr,
    )

    bundle = directory / "flight.tar"
    operate(aircraft, "export", bundle, "--flight", FLIGHT_ID, "--pending-uploads")
    copied = operate(ground, "import", bundle)
    there = _first(operate(ground, "flights", "--json", quiet=True))
    check(
        "the ground has them, with the name of their flight",
        copied.returncode == 0 and (there["tile_count"], there["name"]) == (count, NAME),
        copied.stderr,
    )
    operate(aircraft, "sync", "--from", ground.socket_path, "--push-uploads", quiet=True)
    waiting = _first(operate(aircraft, "flights", "--json", quiet=True))["pending_upload_count"]
    check("they are marked as uploaded", waiting == 0)

    fetched = operate(ground, "sync", "--from", aircraft.socket_path, "--copy-from", tiles[0])
    here, there = _digests(aircraft.client), _digests(ground.client)
    check(
        f"both hold the same: {len(here)} blocks of tiles have equal digests",
        fetched.returncode == 0 and here == there and sum(n for n, _ in here.values()) > count,
        fetched.stderr,
    )
    verified = operate(ground, "verify", "--hash")
    check("each file on the ground is what its tile says", verified.returncode == 0)


def _digests(client: TileCacheClient) -> dict[tuple[int, int, int], tuple[int, bytes]]:
    """The number of tiles and the digest of each block of all zooms."""
    return {
        (zoom, block.block_x, block.block_y): (block.tile_count, block.digest)
        for zoom in range(MAX_ZOOM + 1)
        for answer in client.store.DescribeBlocks(
            DescribeBlocksRequest(zoom=zoom), timeout=CALL_TIMEOUT_S
        )
        for block in answer.blocks
    }


def _first(ended: Any) -> dict[str, Any]:
    """The first line of JSON Lines."""
    line: dict[str, Any] = json.loads(ended.stdout.splitlines()[0])
    return line
