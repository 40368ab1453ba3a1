"""The whole way once, on real imagery: `make demo`.

Cuts NASA's Blue Marble into tiles, starts the daemon on a PostgreSQL of its own,
imports the tiles with the real command, reads them back by id, by key and by
box, compares every field with what went in, flies over them with a replica, lets
sectors age some of them, draws the coverage, shows an operator the use, a tile's
explanation and an eviction on trial and for real, prepares a flight from a plan,
brings what it made to a second daemon, and stops. Exits 0 only if all of it held.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from tests.acceptance.debriefing import debrief_flight
from tests.acceptance.flight import prepare_flight
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.imagery import WHOLE_WORLD, cut_blue_marble, list_pyramid
from tilecache.client import TileCacheClient
from tilecache.mercator import cells_in_circle
from tilecache.v1.tile_cache_admin_pb2 import Sector, SectorClassification, SetSectorRequest
from tilecache.v1.tile_identity_pb2 import TileKey, TileSource
from tilecache.v1.tile_metadata_store_pb2 import (
    BoundingBox,
    FreshnessLabel,
    GetServerInfoRequest,
    GetTileRequest,
    LookupTilesRequest,
    QueryTilesRequest,
    Region,
    TileMetadata,
    TileRef,
    TouchTilesRequest,
)
from tilecache_daemon import derive_location_hash, derive_tile_id

SCRATCH = Path(__file__).parents[2] / "build" / "demo"
PYRAMID = SCRATCH / "tiles"
GROUND = SCRATCH / "ground"
PICTURE = SCRATCH / "coverage.png"

WHOLE_ZOOMS = range(5)
DETAIL_ZOOM = 5
DETAIL_BOX = (30.0, -15.0, 62.0, 45.0)
SHOWN_BOX = (15.0, -45.0, 72.0, 75.0)
DETAIL_AGE_S = 2 * 365 * 86_400
Box = tuple[float, float, float, float]
SECTORS: dict[str, tuple[SectorClassification.ValueType, Box, FreshnessLabel.ValueType]] = {
    "rear": (
        SectorClassification.SECTOR_CLASSIFICATION_STABLE_REAR,
        (34.0, -12.0, 50.0, 20.0),
        FreshnessLabel.FRESHNESS_LABEL_DOWNGRADED,
    ),
    "front": (
        SectorClassification.SECTOR_CLASSIFICATION_ACTIVE_CONFLICT,
        (44.0, 22.0, 53.0, 41.0),
        FreshnessLabel.FRESHNESS_LABEL_REJECTED,
    ),
}
"""Class, box, and the label of the detail tiles in it once they are two years old."""

FLIGHT = ((38.7, -9.1), (50.45, 30.5))
FLIGHT_WINDOWS = 200
FOLLOWED_METERS = 1_000_000
WINDOW_METERS = 500_000
MAX_AGE_S = 5.0
CEILING_BYTES = 8_000_000
FREED = "1MB"
CALL_TIMEOUT_S = 30.0
OUTPUT_ONLY = ("created_at", "accessed_at")
_console = Console(highlight=False, soft_wrap=True)


class Demo:
    """Prints what is done and remembers whether all of it held."""

    def __init__(self) -> None:
        self.all_held = True

    def step(self, text: str) -> None:
        _console.print(f"\n[bold]{text}[/bold]")

    def check(self, text: str, held: bool, *what_is_wrong: object) -> None:
        _console.print(f"  [green]✓[/green] {text}" if held else f"  [red]✗[/red] {text}")
        if not held:
            self.all_held = False
            for line in what_is_wrong[:5]:
                _console.print(f"    {line}", markup=False)


def main() -> int:
    """The exit code."""
    demo = Demo()
    tiles = prepare_tiles(demo)
    with tempfile.TemporaryDirectory(prefix="tilecache-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # as root, PostgreSQL runs as another user
        demo.step("Start the daemon on a PostgreSQL of its own")
        with DaemonProcess(
            directory, tiles_directory=PYRAMID, max_used_bytes=CEILING_BYTES
        ) as daemon:
            greet(demo, daemon)
            import_tiles(demo, daemon, len(tiles))
            read_back(demo, daemon.client, tiles)
            fly(demo, daemon.client, tiles)
            age_tiles(demo, daemon)
            draw_coverage(demo, daemon, tiles)
            show_usage(demo, daemon)
            explain_label(demo, daemon, tiles)
            make_room(demo, daemon, tiles)
            demo.step("Prepare a flight: coverage, what is missing, a pin, an eviction")
            day = f"{datetime.now(timezone.utc) + timedelta(days=7):%Y-%m-%d}"
            prepare_flight(partial(operate, daemon), demo.check, PYRAMID, day)
            demo.step("Bring the flight to the ground: a copy, uploads, a synchronisation")
            ground_directory = directory / "ground"
            ground_directory.mkdir()
            ground_directory.chmod(0o755)
            GROUND.mkdir()
            with DaemonProcess(ground_directory, tiles_directory=GROUND) as ground:
                debrief_flight(operate, demo.check, daemon, ground, SCRATCH, (PYRAMID, GROUND))
            demo.step("Stop the daemon")
            exit_code = daemon.stop()
            demo.check(f"SIGTERM ended it with exit code {exit_code}", exit_code == 0)
            demo.check("its socket is gone", not daemon.socket_path.exists())
    _console.print("\nAll of it held." if demo.all_held else "\nNot all of it held.", style="bold")
    return 0 if demo.all_held else 1


def prepare_tiles(demo: Demo) -> dict[str, TileMetadata]:
    """Cuts the pyramid; gives what the store is to hold of each tile, by id."""
    demo.step("Cut NASA's Blue Marble into Web Mercator tiles")
    shutil.rmtree(SCRATCH, ignore_errors=True)
    cut_blue_marble(PYRAMID, WHOLE_ZOOMS[0], WHOLE_ZOOMS[-1])
    cut_blue_marble(PYRAMID, DETAIL_ZOOM, DETAIL_ZOOM, DETAIL_BOX)
    for path in (PYRAMID / str(DETAIL_ZOOM)).rglob("*.jpg"):
        captured_at = path.stat().st_mtime - DETAIL_AGE_S
        os.utime(path, (captured_at, captured_at))
    tiles = {tile.tile_uuid: tile for tile in map(describe_file, list_pyramid(PYRAMID))}
    demo.check(f"{len(tiles)} tiles in {PYRAMID}", len(tiles) > 341)
    return tiles


def describe_file(found: tuple[int, int, int, Path]) -> TileMetadata:
    """What the store is to say of a tile, worked out from its file alone."""
    zoom, x, y, path = found
    content = path.read_bytes()
    captured_at = Timestamp()
    captured_at.FromMicroseconds(path.stat().st_mtime_ns // 1000)
    side = 2**zoom
    latitude = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * (y + 0.5) / side))))
    return TileMetadata(
        tile_uuid=str(derive_tile_id(zoom, x, y, "googlemaps", None)),
        key=TileKey(zoom=zoom, x=x, y=y, source=TileSource.TILE_SOURCE_GOOGLEMAPS),
        location_hash=str(derive_location_hash(zoom, x, y)),
        latitude=latitude,
        longitude=(x + 0.5) / side * 360 - 180,
        tile_size_meters=2 * math.pi * 6378137 * math.cos(math.radians(latitude)) / side,
        tile_size_pixels=256,
        file_path=path.relative_to(PYRAMID).as_posix(),
        content_sha256=hashlib.sha256(content).hexdigest(),
        disk_bytes=len(content),
        captured_at=captured_at,
        freshness_label=FreshnessLabel.FRESHNESS_LABEL_FRESH,
    )


def greet(demo: Demo, daemon: DaemonProcess) -> None:
    info = daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
    demo.check(
        f"version {info.daemon_version}, contract {info.contract_version}, "
        f"schema {info.schema_revision}, on {daemon.socket_path}",
        info.database_available,
    )
    namespace = UUID(info.namespace_uuid)
    demo.check(f"identities in namespace {namespace}", str(namespace).startswith("5b8d0c2e-"))


def import_tiles(demo: Demo, daemon: DaemonProcess, count: int) -> None:
    demo.step("tilecache import, twice")
    for counted in ("inserted_count", "already_present_count"):
        imported = run_tilecache("import", PYRAMID, "--json", socket_path=daemon.socket_path)
        report = json.loads(imported.stdout or "{}")
        demo.check(
            f"{counted} is {report.get(counted)} of {count}",
            imported.returncode == 0 and report.get(counted) == count,
            imported.stdout,
            imported.stderr,
        )


def read_back(demo: Demo, client: TileCacheClient, tiles: dict[str, TileMetadata]) -> None:
    demo.step("Read the tiles back and compare every field")
    by_id = (TileRef(tile_uuid=tile_uuid) for tile_uuid in tiles)
    found = [
        client.store.GetTile(GetTileRequest(tile=ref), timeout=CALL_TIMEOUT_S).tile for ref in by_id
    ]
    compare(demo, f"{len(found)} by id, one by one", found, tiles.values())
    by_key = LookupTilesRequest(tiles=[TileRef(key=tile.key) for tile in tiles.values()])
    results = client.store.LookupTiles(by_key, timeout=CALL_TIMEOUT_S).results
    compare(demo, f"{len(results)} by key, at once", (r.tile for r in results), tiles.values())
    for zoom in (*WHOLE_ZOOMS, DETAIL_ZOOM):
        box = DETAIL_BOX if zoom == DETAIL_ZOOM else WHOLE_WORLD
        found = query_box(client, zoom, box)
        expected = [tile for tile in tiles.values() if tile.key.zoom == zoom]
        compare(demo, f"{len(found)} by box, zoom {zoom}", found, expected)


def fly(demo: Demo, client: TileCacheClient, tiles: dict[str, TileMetadata]) -> None:
    """Moving windows from a replica, each compared with the tiles that were cut."""
    demo.step("Fly from Lisbon to Kyiv with a replica of the tiles around")
    wanted = {
        (tile.key.x, tile.key.y): tile for tile in tiles.values() if tile.key.zoom == DETAIL_ZOOM
    }
    incomplete, wrong, ages = 0, [], []
    with client.replica() as replica:
        for number in range(FLIGHT_WINDOWS):
            part = number / (FLIGHT_WINDOWS - 1)
            latitude, longitude = (
                start + part * (end - start) for start, end in zip(*FLIGHT, strict=True)
            )
            replica.follow(latitude, longitude, FOLLOWED_METERS, (DETAIL_ZOOM,))
            if number == 0:
                replica.wait_until_synced(CALL_TIMEOUT_S)
            window = replica.around(latitude, longitude, WINDOW_METERS, DETAIL_ZOOM)
            incomplete += not window.complete
            ages.append(window.age_s)
            expected = [
                wanted[x, y]
                for cells in cells_in_circle(DETAIL_ZOOM, latitude, longitude, WINDOW_METERS)
                for y in range(cells.y_from, cells.y_to + 1)
                for x in range(cells.x_from, cells.x_to + 1)
            ]
            if sorted(t.tile_uuid for t in window) != sorted(t.tile_uuid for t in expected):
                wrong.append(f"window {number}: {len(window)} tiles, expected {len(expected)}")
            wrong += [
                f"stored:\n{found}expected:\n{tiles[found.tile_uuid]}"
                for found in window
                if not is_same(found, tiles[found.tile_uuid])
            ]
    demo.check(f"each of {FLIGHT_WINDOWS} windows was complete", incomplete == 0, incomplete)
    demo.check("each held the tiles that were cut, equal in every field", not wrong, *wrong)
    demo.check(f"none was older than {max(ages):.1f} s", max(ages) < MAX_AGE_S)


def query_box(client: TileCacheClient, zoom: int, box: Box) -> list[TileMetadata]:
    request = QueryTilesRequest(zoom=zoom, region=Region(bounding_box=bounding_box(box)))
    answers = client.store.QueryTiles(request, timeout=CALL_TIMEOUT_S)
    return [tile for answer in answers for tile in answer.tiles]


def bounding_box(box: Box) -> BoundingBox:
    south, west, north, east = box
    return BoundingBox(south=south, west=west, north=north, east=east)


def compare(
    demo: Demo, text: str, found: Iterable[TileMetadata], expected: Iterable[TileMetadata]
) -> None:
    """Checks that both hold the same tiles, each once, equal in every field."""
    found_by_id = sorted(found, key=lambda tile: tile.tile_uuid)
    expected_by_id = sorted(expected, key=lambda tile: tile.tile_uuid)
    wrong = [
        f"stored:\n{stored}expected:\n{wanted}"
        for stored, wanted in zip(found_by_id, expected_by_id, strict=False)
        if not is_same(stored, wanted)
    ]
    held = bool(found_by_id) and len(found_by_id) == len(expected_by_id) and not wrong
    demo.check(text, held, f"{len(expected_by_id)} were expected", *wrong)


def is_same(stored: TileMetadata, wanted: TileMetadata) -> bool:
    """Whether they agree in all that the importer knew; degrees and metres to rounding."""
    if not stored.HasField("created_at"):
        return False
    rest = TileMetadata()
    rest.CopyFrom(stored)
    for name in OUTPUT_ONLY:
        rest.ClearField(name)
    for name in ("latitude", "longitude", "tile_size_meters"):
        if not math.isclose(getattr(rest, name), getattr(wanted, name), rel_tol=1e-12):
            return False
        setattr(rest, name, getattr(wanted, name))
    return rest == wanted


def age_tiles(demo: Demo, daemon: DaemonProcess) -> None:
    demo.step("Classify two sectors, whose rules find some tiles too old")
    with TileCacheClient(daemon.admin_socket_path) as client:
        for name, (classification, box, _) in SECTORS.items():
            sector = Sector(
                name=name, classification=classification, bounding_box=bounding_box(box)
            )
            answer = client.admin.SetSector(SetSectorRequest(sector=sector), timeout=CALL_TIMEOUT_S)
            demo.check(
                f"{name}: {answer.relabelled_count} tiles have a new label",
                answer.relabelled_count > 0,
            )


def expected_label(tile: TileMetadata) -> str:
    for _, (south, west, north, east), label in SECTORS.values():
        if south <= tile.latitude <= north and west <= tile.longitude <= east:
            return FreshnessLabel.Name(label).removeprefix("FRESHNESS_LABEL_").lower()
    return "fresh"


def draw_coverage(demo: Demo, daemon: DaemonProcess, tiles: dict[str, TileMetadata]) -> None:
    demo.step("tilecache coverage")
    arguments = ("--zoom", DETAIL_ZOOM, "--png", PICTURE, "--json")
    box = ",".join(map(str, SHOWN_BOX))
    drawn = run_tilecache("coverage", "--bbox", box, *arguments, socket_path=daemon.socket_path)
    summary = (drawn.stdout.splitlines() or ["{}"])[-1]
    numbers = json.loads(summary)
    expected = Counter(
        expected_label(tile) for tile in tiles.values() if tile.key.zoom == DETAIL_ZOOM
    )
    demo.check(
        f"{numbers.get('usable')} of {numbers.get('cells')} cells are usable: "
        f"{', '.join(f'{numbers.get(label)} {label}' for label in expected)}",
        drawn.returncode == 0
        and all(numbers.get(label) == count for label, count in expected.items()),
        f"{dict(expected)} were expected",
        drawn.stderr,
    )
    demo.check(f"the picture is {PICTURE}", PICTURE.is_file() and PICTURE.stat().st_size > 0)


def show_usage(demo: Demo, daemon: DaemonProcess) -> None:
    demo.step("tilecache usage: what is covered, full, stale and waiting")
    shown = operate(daemon, "usage")
    usage = json.loads(operate(daemon, "usage", "--json", quiet=True).stdout or "{}")
    stored = int(usage.get("total", {}).get("tile_count", 0))
    demo.check(f"all {stored} tiles are counted", f"{stored:,} tiles" in shown.stdout)


def explain_label(demo: Demo, daemon: DaemonProcess, tiles: dict[str, TileMetadata]) -> None:
    demo.step("tilecache explain: why a tile has its label")
    rejected = next(uuid for uuid, tile in tiles.items() if expected_label(tile) == "rejected")
    told = operate(daemon, "explain", rejected)
    demo.check("it names the sector and its rule", "'front'" in told.stdout, told.stderr)


def make_room(demo: Demo, daemon: DaemonProcess, tiles: dict[str, TileMetadata]) -> None:
    demo.step("tilecache evict: on trial, for real, and then the files")
    used = [uuid for uuid, tile in tiles.items() if tile.key.zoom <= 1]
    touched = TouchTilesRequest(tiles=[TileRef(tile_uuid=uuid) for uuid in used])
    daemon.client.store.TouchTiles(touched, timeout=CALL_TIMEOUT_S)

    tried = operate(daemon, "evict", "--free", FREED, "--dry-run")
    done = operate(daemon, "evict", "--free", FREED, "--yes")
    demo.check(
        "the trial said which tiles would go",
        done.returncode == 0 and tile_lines(tried.stdout) == tile_lines(done.stdout),
    )
    listed = operate(daemon, "evictions", "list", "--json", quiet=True).stdout.splitlines()
    went = [json.loads(line) for line in listed]
    found = {found.tile_uuid for found in look_up(daemon.client, tiles)}
    demo.check(
        f"{len(went)} tiles went, none of the {len(used)} that were used just now",
        found == tiles.keys() - {gone["tile_uuid"] for gone in went} and found.issuperset(used),
    )
    removed = operate(daemon, "evictions", "remove", "--root", PYRAMID, "--yes")
    left = {path.relative_to(PYRAMID).as_posix() for *_, path in list_pyramid(PYRAMID)}
    demo.check(
        "their files are gone, and the others' are there",
        removed.returncode == 0 and left == {tiles[uuid].file_path for uuid in found},
    )


def operate(
    daemon: DaemonProcess, *arguments: object, quiet: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Runs an operator's command and shows what it says."""
    ended = run_tilecache(
        *arguments,
        socket_path=daemon.socket_path,
        admin_socket_path=daemon.admin_socket_path,
    )
    if not quiet:
        _console.print(f"  $ tilecache {' '.join(map(str, arguments))}", style="bold", markup=False)
        for line in ended.stdout.splitlines():
            _console.print(f"    {line}", markup=False)
    return ended


def tile_lines(shown: str) -> list[str]:
    """The lines that name a tile."""
    return [line for line in shown.splitlines() if line.startswith("  ")]


def look_up(client: TileCacheClient, tile_uuids: Iterable[str]) -> list[TileMetadata]:
    """Those of the tiles that are there."""
    request = LookupTilesRequest(tiles=[TileRef(tile_uuid=uuid) for uuid in tile_uuids])
    results = client.store.LookupTiles(request, timeout=CALL_TIMEOUT_S).results
    return [result.tile for result in results if result.HasField("tile")]


if __name__ == "__main__":
    sys.exit(main())
