"""Figures of replicas: windows in the caller's memory, and what it costs to keep them up to
date."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from statistics import median
from typing import Any

import psycopg

from tests.benchmarks.measure import Ratio, percentile, quotients, seconds
from tests.benchmarks.peers import PsycopgPeer, SqlitePeer
from tests.benchmarks.stage import Stage
from tests.benchmarks.tiles import ZOOM, X, Y, make_records
from tests.benchmarks.writing import insert_records
from tests.daemon_process import DaemonProcess
from tests.tiles import ONBOARD, cell_region, random_flight, tile, tile_key, tile_uuid
from tests.waiting import eventually
from tests.watching import Stream, held
from tilecache.client import TileCacheClient
from tilecache.identity import tile_uuid_text
from tilecache.mercator import CellRectangle, cell_at, cell_centre, cells_in_circle
from tilecache.replica import NotHeldError, TileReplica
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    BulkInsertTilesRequest,
    InsertTileRequest,
    TileMetadata,
    WatchedArea,
)

EDGE = 447
CELLS = (X, X + EDGE - 1, Y, Y + EDGE - 1)
FOLLOWED = (X, X + 255, Y, Y + 255)
"""64 blocks, which are written to."""
ROUNDS = 9
WINDOWS = 200
WINDOWS_PER_S = 50
SPEED_MPS = 60.0
FLIGHT_METERS = 10_000.0
METERS_PER_DEGREE = 111_195.0
FOLLOWERS = 10
IMPORTED = 20_000
SYNC_S = 120.0
TIMEOUT_S = 60.0

FIELDS = "x, y, file_path, latitude, longitude"
"""What the reader uses."""
_USABLE = "freshness_status NOT IN ('rejected', 'stale_reject')"
Found = set[tuple[int, int, str]]


def measure_windows(stage: Stage, dsn: str) -> list[Ratio]:
    """Windows that stand still, of 200,000 tiles."""
    with stage.daemon(dsn) as daemon, daemon.client.replica() as replica:
        replica.follow_areas([WatchedArea(zoom=ZOOM, region=cell_region(*CELLS))])
        replica.wait_until_synced(SYNC_S)
        peer = PsycopgWindows(dsn)
        return [
            *_windows(replica, peer, SqliteWindows(PsycopgPeer(dsn))),
            _circle(replica, peer),
            _one_tile(replica, peer),
        ]


def measure_flight(stage: Stage, dsn: str) -> list[Ratio]:
    """Windows that move."""
    with stage.daemon(dsn) as daemon:
        return _flight(daemon, PsycopgWindows(dsn))


def measure_updates(stage: Stage, dsn: str) -> list[Ratio]:
    """What it takes to keep replicas up to date."""
    with stage.daemon(dsn) as daemon:
        ratios = [_change_seen(daemon), *_bytes_sent(daemon), *_followers(daemon)]
    return [*ratios, _memory(stage)]


class PsycopgWindows:
    """psycopg in the caller's process, with prepared statements."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)

    def cells(self, x_from: int, x_to: int, y_from: int, y_to: int) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            f"SELECT {FIELDS} FROM tiles WHERE zoom = %s AND x BETWEEN %s AND %s"
            f" AND y BETWEEN %s AND %s AND {_USABLE}",
            (ZOOM, x_from, x_to, y_from, y_to),
            binary=True,
        ).fetchall()

    def around(self, latitude: float, longitude: float, radius: float) -> list[tuple[Any, ...]]:
        """The box of the circle's cells, without its corners."""
        rows = list(cells_in_circle(ZOOM, latitude, longitude, radius))
        ends = {row.y_from: (row.x_from, row.x_to) for row in rows}
        x_from, x_to = min(row.x_from for row in rows), max(row.x_to for row in rows)
        found = self.cells(x_from, x_to, rows[0].y_from, rows[-1].y_to)
        return [tile for tile in found if ends[tile[1]][0] <= tile[0] <= ends[tile[1]][1]]

    def tile(self, tile_uuid: str) -> tuple[Any, ...] | None:
        return self._connection.execute(
            f"SELECT {FIELDS} FROM tiles WHERE tile_uuid = %s::uuid", (tile_uuid,), binary=True
        ).fetchone()


class SqliteWindows:
    """SQLite in the caller's process, with the same tiles."""

    def __init__(self, peer: PsycopgPeer) -> None:
        rows = peer.query_box(ZOOM, X, Y, EDGE)
        self._connection = SqlitePeer(
            (*row[:14], *(moment and str(moment) for moment in row[14:18]), *row[18:])
            for row in rows
        ).connection

    def cells(self, x_from: int, x_to: int, y_from: int, y_to: int) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            f"SELECT {FIELDS} FROM tiles WHERE zoom = ? AND x BETWEEN ? AND ?"
            f" AND y BETWEEN ? AND ? AND {_USABLE}",
            (ZOOM, x_from, x_to, y_from, y_to),
        ).fetchall()


def of_rows(rows: Sequence[tuple[Any, ...]]) -> Found:
    return {(row[0], row[1], row[2]) for row in rows}


def of_tiles(tiles: Sequence[TileMetadata]) -> Found:
    return {(tile.key.x, tile.key.y, tile.file_path) for tile in tiles}


def _windows(replica: TileReplica, peer: PsycopgWindows, sqlite: SqliteWindows) -> list[Ratio]:
    chance = random.Random(7)
    corners = [
        (X + chance.randrange(EDGE - 7), Y + chance.randrange(EDGE - 7)) for _ in range(WINDOWS)
    ]
    boxes = [(x, x + 6, y, y + 6) for x, y in corners]
    for box in boxes:
        window = replica.cells(ZOOM, *box)
        assert window.complete
        assert of_tiles(window) == of_rows(peer.cells(*box)) == of_rows(sqlite.cells(*box))
        assert len(window) == 49
    ours, theirs, sqlites = _medians(
        [
            [lambda box=box: replica.cells(ZOOM, *box) for box in boxes],
            [lambda box=box: peer.cells(*box) for box in boxes],
            [lambda box=box: sqlite.cells(*box) for box in boxes],
        ]
    )
    return [
        Ratio(
            "window49_psycopg_over_replica",
            "a window of 7 x 7 cells by cells: psycopg's time over the replica's",
            *(8.0, True, quotients(theirs, ours)),
            parts={"replica": ours, "psycopg": theirs},
        ),
        Ratio(
            "window49_sqlite_over_replica",
            "a window of 7 x 7 cells by cells: SQLite's time over the replica's",
            *(4.0, True, quotients(sqlites, ours)),
            parts={"replica": ours, "SQLite in process": sqlites},
        ),
    ]


def _circle(replica: TileReplica, peer: PsycopgWindows) -> Ratio:
    chance = random.Random(8)
    places = []
    for _ in range(WINDOWS):
        latitude, longitude = cell_centre(
            ZOOM, X + 20 + chance.randrange(EDGE - 40), Y + 20 + chance.randrange(EDGE - 40)
        )
        places.append((latitude + chance.uniform(0, 5e-4), longitude, 850.0))
    counts = []
    for place in places:
        window = replica.around(*place, ZOOM)
        assert window.complete
        assert of_tiles(window) == of_rows(peer.around(*place))
        counts.append(len(window))
    assert 215 <= median(counts) <= 235, median(counts)
    ours, theirs = _medians(
        [
            [lambda place=place: replica.around(*place, ZOOM) for place in places],
            [lambda place=place: peer.around(*place) for place in places],
        ]
    )
    return Ratio(
        "around225_psycopg_over_replica",
        "a circle that overlaps about 225 cells: psycopg's time over the replica's",
        *(8.0, True, quotients(theirs, ours)),
        parts={"replica": ours, "psycopg": theirs},
    )


def _one_tile(replica: TileReplica, peer: PsycopgWindows) -> Ratio:
    chance = random.Random(9)
    ids = [
        tile_uuid_text(
            ZOOM, X + chance.randrange(EDGE), Y + chance.randrange(EDGE), "googlemaps", None
        )
        for _ in range(WINDOWS)
    ]
    for each in ids:
        row = peer.tile(each)
        assert row
        assert of_tiles([replica.get(each)]) == of_rows([row])
    ours, theirs = _medians(
        [
            [lambda each=each: replica.get(each) for each in ids],
            [lambda each=each: peer.tile(each) for each in ids],
        ]
    )
    return Ratio(
        "tile_psycopg_over_replica",
        "one tile by id: psycopg's time over the replica's",
        *(20.0, True, quotients(theirs, ours)),
        parts={"replica": ours, "psycopg": theirs},
    )


def _medians(sides: list[list[Callable[[], object]]]) -> list[list[float]]:
    """The median seconds of each side's calls, round by round in turn."""
    for calls in sides:
        for call in calls:
            call()
    rounds = [[median(map(seconds, calls)) for calls in sides] for _ in range(ROUNDS)]
    return [list(column) for column in zip(*rounds, strict=True)]


def _flight(daemon: DaemonProcess, peer: PsycopgWindows) -> list[Ratio]:
    """Windows of 15 x 15 cells along a flight eastward, while its area is imported anew."""
    latitude, longitude = cell_centre(ZOOM, X + 60, Y + EDGE // 2)
    step_s = 1 / WINDOWS_PER_S
    east_degrees = SPEED_MPS * step_s / METERS_PER_DEGREE / _cosine(latitude)
    count = round(FLIGHT_METERS / SPEED_MPS * WINDOWS_PER_S)
    ours, theirs, incomplete = [], [], 0
    with TileCacheClient(daemon.socket_path) as client, client.replica() as replica:
        replica.follow(latitude, longitude, 3_000, (ZOOM,), velocity_mps=(0, SPEED_MPS))
        replica.wait_until_synced(SYNC_S)
        with importing_anew(daemon, CellRectangle(X + 50, X + 170, Y + 200, Y + 247)):
            began = time.perf_counter()
            for number in range(count):
                longitude += east_degrees
                x, y = cell_at(ZOOM, latitude, longitude)
                box = (x - 7, x + 7, y - 7, y + 7)
                replica.follow(latitude, longitude, 3_000, (ZOOM,), velocity_mps=(0, SPEED_MPS))
                start = time.perf_counter()
                window = replica.cells(ZOOM, *box)
                ours.append(time.perf_counter() - start)
                theirs.append(seconds(peer.cells, *box))
                incomplete += not (window.complete and len(window) == 225)
                time.sleep(max(began + (number + 1) * step_s - time.perf_counter(), 0))
    size = 500
    p99s = [
        [percentile(side[start : start + size], 99) for start in range(0, count - size + 1, size)]
        for side in (ours, theirs)
    ]
    return [
        Ratio(
            "flight_p99_psycopg_over_replica",
            "windows of 15 x 15 along a flight of 10 km, the slowest of a hundred, while the area"
            " is imported anew: psycopg's time over the replica's",
            *(5.0, True, quotients(p99s[1], p99s[0])),
            parts={"replica": p99s[0], "psycopg": p99s[1]},
        ),
        Ratio(
            "flight_incomplete_windows",
            f"windows along that flight that were not complete, of {count}",
            *(0.0, False, [float(incomplete)]),
        ),
    ]


def _cosine(latitude: float) -> float:
    from math import cos, radians

    return cos(radians(latitude))


@contextmanager
def importing_anew(daemon: DaemonProcess, cells: CellRectangle) -> Iterator[None]:
    """Another process replaces the tiles of some cells by newer ones, again and again."""
    command = [sys.executable, "-m", "tests.benchmarks.replicas", str(daemon.socket_path)]
    process = subprocess.Popen([*command, *map(str, cells)], stdin=subprocess.PIPE)
    try:
        yield
        assert process.poll() is None, "the import has ended"
    finally:
        process.terminate()
        process.wait()


def import_anew(socket_path: str, cells: CellRectangle) -> None:
    """Replaces tiles until the process is ended."""
    captured_at = datetime.now().astimezone() - timedelta(days=20)
    with TileCacheClient(socket_path) as client:
        while True:
            captured_at += timedelta(seconds=1)

            def batches(captured_at: datetime = captured_at) -> Iterator[BulkInsertTilesRequest]:
                for y in range(cells.y_from, cells.y_to + 1, 4):
                    yield BulkInsertTilesRequest(
                        tiles=[
                            tile(tile_key(ZOOM, x, row), str(captured_at), captured_at)
                            for row in range(y, min(y + 4, cells.y_to + 1))
                            for x in range(cells.x_from, cells.x_to + 1)
                        ],
                        on_conflict=ON_CONFLICT_REPLACE_IF_NEWER,
                    )

            for answer in client.store.BulkInsertTiles(batches(), timeout=TIMEOUT_S):
                assert not answer.refused, answer.refused[0]


def _change_seen(daemon: DaemonProcess) -> Ratio:
    """From an acknowledged insert of a new tile to its being seen."""
    taken = []
    with daemon.client.replica() as replica:
        replica.follow_areas([WatchedArea(zoom=ZOOM, region=cell_region(*FOLLOWED))])
        replica.wait_until_synced(SYNC_S)
        seen = threading.Event()
        replica.on_change(lambda _: seen.set())
        chance = random.Random(10)
        for message in _new_tiles(300, chance):
            seen.clear()
            uuid = tile_uuid(message.key)
            daemon.client.store.InsertTile(InsertTileRequest(tile=message), timeout=TIMEOUT_S)
            start = time.perf_counter()
            while not is_held(replica, uuid):
                seen.wait(0.05)
                seen.clear()
            taken.append((time.perf_counter() - start) * 1_000)
            time.sleep(chance.uniform(0, 0.1))
    parts = [taken[start : start + 100] for start in range(0, 300, 100)]
    return Ratio(
        "change_seen_p99_ms",
        "from an acknowledged insert to its being seen in a replica, in milliseconds, the slowest"
        f" of a hundred (the median is {median(taken):.1f})",
        *(50.0, False, [percentile(part, 99) for part in parts]),
    )


def is_held(replica: TileReplica, tile_uuid: str) -> bool:
    """Whether a replica has a tile; raises CallError if it has ended."""
    try:
        replica.get(tile_uuid)
    except NotHeldError:
        return False
    return True


def _new_tiles(count: int, chance: random.Random) -> list[TileMetadata]:
    """Tiles of a new flight, in random cells of those that are followed."""
    flight = random_flight()
    numbers = chance.sample(range(256 * 256), count)
    keys = [tile_key(ZOOM, X + n % 256, Y + n // 256, ONBOARD, flight) for n in numbers]
    return [tile(key, file_path=f"{flight}/{key.x}/{key.y}.jpg") for key in keys]


def _bytes_sent(daemon: DaemonProcess) -> list[Ratio]:
    """What a follower is sent."""
    region = cell_region(*FOLLOWED)
    first, again = Stream(daemon.client), Stream(daemon.client)
    first.follow(region)
    blocks, full_bytes = _sync(first)
    requests = [held(block) for block in blocks]
    again.follow(region, held=requests)
    more, resync_bytes = _sync(again)
    assert not more
    resync_bytes += sum(request.ByteSize() + 2 for request in requests)
    again.close()

    (changed,) = _new_tiles(1, random.Random(11))
    changed.key.x, changed.key.y = X + 40, Y + 40
    daemon.client.store.InsertTile(InsertTileRequest(tile=changed), timeout=TIMEOUT_S)
    update = next(response for response in first if response.blocks)
    (sent,) = update.blocks[0].tiles
    change_bytes = update.ByteSize()

    import_bytes, tile_bytes = _follow_import(daemon, first)
    first.close()
    delete_flights(daemon)
    return [
        Ratio(
            "change_bytes_over_tile",
            "what a follower is sent where one tile of a full block changes, over the tile",
            *(4.0, False, [change_bytes / sent.ByteSize()]),
        ),
        Ratio(
            "import_bytes_over_tiles",
            "what a follower is sent while 20,000 tiles are imported, over the tiles",
            *(2.0, False, [import_bytes / tile_bytes]),
        ),
        Ratio(
            "resync_bytes_over_full",
            "what a reconnection sends in both directions where nothing changed, over the first",
            *(0.02, False, [resync_bytes / full_bytes]),
        ),
    ]


def _sync(stream: Stream) -> tuple[list[Any], int]:
    """The blocks until the stream is synced, and the bytes of its messages."""
    blocks, sent_bytes = [], 0
    for response in stream:
        blocks += response.blocks
        sent_bytes += response.ByteSize()
        if response.synced:
            break
    return blocks, sent_bytes


def _follow_import(daemon: DaemonProcess, stream: Stream) -> tuple[int, int]:
    """Imports tiles of a new flight into the followed cells: the bytes of the messages
    that followed, and of the tiles themselves."""
    flight = random_flight()
    messages = [
        tile(tile_key(ZOOM, X + n % 200, Y + n // 200, ONBOARD, flight), file_path=f"{flight}/{n}")
        for n in range(IMPORTED)
    ]
    waiting = {tile_uuid(message.key) for message in messages}
    uuids = set(waiting)
    importer = threading.Thread(target=_import, args=(daemon.client, messages))
    importer.start()
    sent_bytes, sizes = 0, {}
    for response in stream:
        sent_bytes += response.ByteSize() if response.blocks else 0
        for block in response.blocks:
            for each in block.tiles:
                if each.tile_uuid in uuids:
                    sizes[each.tile_uuid] = each.ByteSize()
                    waiting.discard(each.tile_uuid)
        if not waiting:
            break
    importer.join()
    return sent_bytes, sum(sizes.values())


def _import(client: TileCacheClient, messages: list[TileMetadata], batch: int = 500) -> None:
    requests = (
        BulkInsertTilesRequest(tiles=messages[start : start + batch])
        for start in range(0, len(messages), batch)
    )
    for answer in client.store.BulkInsertTiles(requests, timeout=TIMEOUT_S):
        assert not answer.refused, answer.refused[0]


def _followers(daemon: DaemonProcess) -> list[Ratio]:
    """Writers with and without ten replicas that follow what they write."""
    inserts: dict[bool, list[float]] = {True: [], False: []}
    imports: dict[bool, list[float]] = {True: [], False: []}
    chance = random.Random(12)
    for _ in range(5):
        for with_followers in (False, True):
            with ExitStack() as closing:
                followers = [
                    closing.enter_context(following(daemon, FOLLOWED))
                    for _ in range(FOLLOWERS if with_followers else 0)
                ]
                for follower in followers:
                    follower.wait_until_synced()
                times = [
                    seconds(
                        daemon.client.store.InsertTile,
                        InsertTileRequest(tile=message),
                    )
                    for message in _new_tiles(300, chance)
                ]
                inserts[with_followers].append(median(times))
                messages = _new_tiles(IMPORTED, chance)
                imports[with_followers].append(seconds(_import, daemon.client, messages))
            delete_flights(daemon)
    return [
        Ratio(
            "insert_p50_with_followers_over_without",
            "InsertTile while ten replicas follow the area, over none",
            *(1.3, False, quotients(inserts[True], inserts[False])),
            parts={"ten followers": inserts[True], "none": inserts[False]},
        ),
        Ratio(
            "import_rate_without_over_with_followers",
            "20,000 tiles imported into an area that ten replicas follow: the time over that"
            " without",
            *(1.3, False, quotients(imports[True], imports[False])),
            parts={"ten followers": imports[True], "none": imports[False]},
        ),
    ]


def delete_flights(daemon: DaemonProcess) -> None:
    """Deletes what was written, so that the next round finds as many tiles."""
    request = DeleteTilesRequest(sources=[ONBOARD], include_pending_uploads=True)
    list(daemon.admin_client.admin.DeleteTiles(request, timeout=TIMEOUT_S))


@contextmanager
def following(daemon: DaemonProcess, cells: Sequence[int]) -> Iterator["Follower"]:
    """A process whose replica follows some cells."""
    command = [sys.executable, "-m", "tests.benchmarks.follower", str(daemon.socket_path)]
    process = subprocess.Popen(
        [*command, *map(str, cells)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Follower(process)
    finally:
        process.communicate()


class Follower:
    """What a process with a replica tells of itself."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def wait_until_synced(self) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == "synced\n"

    def measure(self) -> tuple[int, int]:
        """The bytes that the replica has added to the process, and its tiles."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        taken, tiles = map(int, self._process.stdout.readline().split())
        return taken, tiles


def _memory(stage: Stage) -> Ratio:
    """100,000 followed tiles, and 20,000 more that are imported."""
    edge = 320
    dsn = stage.database(edge, 100_000)
    cells = (X, X + edge - 1, Y, Y + 400)
    with stage.daemon(dsn) as daemon, following(daemon, cells) as follower:
        follower.wait_until_synced()
        taken, tiles = follower.measure()
        assert tiles == 100_000
        synced = taken / tiles
        records = make_records(edge, IMPORTED, first=100_000)
        assert insert_records(daemon.client, records, 500) == IMPORTED
        taken, tiles = eventually(lambda: all_of(follower.measure(), 100_000 + IMPORTED))
        imported = taken / tiles
    return Ratio(
        "replica_bytes_per_tile",
        "what 100,000 followed tiles add to the caller's memory, per tile, and 20,000 more",
        *(1_000.0, False, [synced, imported]),
    )


def all_of(measured: tuple[int, int], count: int) -> tuple[int, int] | None:
    """What was measured, if it is of all tiles."""
    return measured if measured[1] == count else None


if __name__ == "__main__":
    import_anew(sys.argv[1], CellRectangle(*map(int, sys.argv[2:6])))
