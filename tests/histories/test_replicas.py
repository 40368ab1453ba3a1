"""Replicas are true at every moment, whatever is written and whatever fails.

One writer changes tiles through the daemon and beside it, and knows when each change was
committed. Replicas follow moving areas meanwhile, and each window is checked against what was
committed before its age. At the end, replicas and table are the same.

`TILECACHE_SOAK_S` runs it for so many seconds, `TILECACHE_SEED` makes other histories.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.faults.servers import ForeignPostgres
from tests.socket_proxy import SocketProxy
from tests.tiles import ZOOM, cell_region, store_row, tile, tile_key, tile_uuid
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.replica import TileReplica
from tilecache.v1.tile_cache_admin_pb2 import (
    SECTOR_CLASSIFICATION_STABLE_REAR,
    DeleteSectorRequest,
    DeleteTilesRequest,
    Sector,
    SetSectorRequest,
)
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    BoundingBox,
    BulkInsertTilesRequest,
    FreshnessLabel,
    InsertTileRequest,
    TileMetadata,
    TileRef,
    TouchTilesRequest,
    WatchedArea,
)

SEED = int(os.environ.get("TILECACHE_SEED", "1"))
DURATION_S = float(os.environ.get("TILECACHE_SOAK_S", "8"))
REPLICAS = 3
FIRST_X, FIRST_Y, SIDE = 32 * 4_000, 32 * 3_000, 96
ALL_CELLS = (FIRST_X, FIRST_X + SIDE - 1, FIRST_Y, FIRST_Y + SIDE - 1)
"""Nine blocks."""
WRITTEN_EVERY = 7
"""One of so many cells has a tile, so that windows are quickly read."""
FIRST_CAPTURE = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=500)
CALL_TIMEOUT_S = 10.0
LABELS = [label for label in FreshnessLabel.values() if label]

KEYS = [
    tile_key(ZOOM, FIRST_X + column, FIRST_Y + row)
    for row in range(SIDE)
    for column in range(SIDE)
    if (row * SIDE + column) % WRITTEN_EVERY == 0
]


class State(NamedTuple):
    """What a tile was: a number, or None where there was none. The change was sent at
    `sent_at`, and was committed by `committed_at`."""

    number: int | None
    sent_at: float
    committed_at: float


class Chronicle:
    """The states of each tile, in order. There is one writer."""

    def __init__(self) -> None:
        self._states = {key.SerializeToString(): [State(None, 0, 0)] for key in KEYS}
        self._lock = threading.Lock()
        self.number = 0

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def change(self, keys: list[TileKey], number: int | None, commit: Callable[[], None]) -> None:
        """Records a change that is committed when `commit` returns."""
        sent_at = time.monotonic()
        with self._lock:
            for key in keys:
                self._states[key.SerializeToString()].append(State(number, sent_at, float("inf")))
        commit()
        committed_at = time.monotonic()
        with self._lock:
            for key in keys:
                states = self._states[key.SerializeToString()]
                states[-1] = states[-1]._replace(committed_at=committed_at)

    def allowed(self, key: TileKey, since: float) -> set[int | None]:
        """The states that a tile may have had after `since`."""
        with self._lock:
            states = list(self._states[key.SerializeToString()])
        ends = [state.committed_at for state in states[1:]] + [float("inf")]
        return {
            state.number for state, ended_by in zip(states, ends, strict=True) if ended_by >= since
        }


class World:
    """The server, the daemon, and what fails."""

    def __init__(self, foreign: ForeignPostgres, daemon: DaemonProcess) -> None:
        self.foreign = foreign
        self.daemon = daemon

    def restart_daemon(self) -> None:
        self.daemon.kill()
        self.daemon.start()

    def stop_daemon(self) -> None:
        self.daemon.stop()
        self.daemon.start()

    def restart_server(self) -> None:
        self.foreign.restart()

    def end_sessions(self) -> None:
        """Ends what the daemon has open, the subscription to changes too."""
        with psycopg.connect(self.foreign.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'tilecache%'"
            )

    def freeze_subscription(self) -> None:
        """The connection for changes stays open, and nothing comes."""
        with psycopg.connect(self.foreign.dsn, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'tilecache-changes'"
            ).fetchall()
        for (pid,) in rows:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(random.uniform(0.5, 4))
        for (pid,) in rows:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Writer:
    """Random changes, each repeated until it is committed."""

    def __init__(self, world: World, chronicle: Chronicle, seed: int) -> None:
        self._world = world
        self._chronicle = chronicle
        self._random = random.Random(seed)
        self.changes = 0

    def change(self) -> None:
        """One change."""
        choose = self._random.choice
        act = choose(
            [
                *(self._insert, self._insert, self._bulk_insert, self._delete),
                *(self._insert_beside, self._update_beside, self._delete_beside),
                *(self._touch, self._relabel),
            ]
        )
        act()
        self.changes += 1

    def _some_keys(self, most: int) -> list[TileKey]:
        return self._random.sample(KEYS, self._random.randint(1, most))

    def _insert(self) -> None:
        (key,) = self._some_keys(1)
        number = self._chronicle.next_number()
        request = InsertTileRequest(
            tile=version(key, number), on_conflict=ON_CONFLICT_REPLACE_IF_NEWER
        )
        self._chronicle.change(
            [key],
            number,
            lambda: until_done(
                lambda: self._world.daemon.client.store.InsertTile(request, timeout=CALL_TIMEOUT_S)
            ),
        )

    def _bulk_insert(self) -> None:
        keys, number = self._some_keys(200), self._chronicle.next_number()
        request = BulkInsertTilesRequest(
            tiles=[version(key, number) for key in keys], on_conflict=ON_CONFLICT_REPLACE_IF_NEWER
        )

        def insert() -> None:
            (answer,) = self._world.daemon.client.store.BulkInsertTiles(
                iter([request]), timeout=CALL_TIMEOUT_S
            )
            assert not answer.refused, answer.refused[0]

        self._chronicle.change(keys, number, lambda: until_done(insert))

    def _delete(self) -> None:
        keys = self._some_keys(40)
        request = DeleteTilesRequest(tile_uuids=list(map(tile_uuid, keys)))
        admin = self._world.daemon.admin_client.admin

        def delete() -> None:
            list(admin.DeleteTiles(request, timeout=CALL_TIMEOUT_S))

        self._chronicle.change(keys, None, lambda: until_done(delete))

    def _insert_beside(self) -> None:
        (key,) = self._some_keys(1)
        number = self._chronicle.next_number()

        def insert(sql: psycopg.Connection[Any]) -> None:
            sql.execute("DELETE FROM tiles WHERE tile_uuid = %s", [tile_uuid(key)])
            message = version(key, number)
            store_row(
                sql,
                key,
                file_path=message.file_path,
                content_sha256=message.content_sha256,
                captured_at=message.captured_at.ToDatetime(timezone.utc),
            )

        self._chronicle.change([key], number, lambda: self._beside(insert))

    def _update_beside(self) -> None:
        label = self._random.choice(["fresh", "downgraded", "stale_warn", "rejected"])
        uuids = list(map(tile_uuid, self._some_keys(100)))
        self._beside(
            lambda sql: sql.execute(
                "UPDATE tiles SET freshness_status = %s WHERE tile_uuid = ANY(%s::uuid[])",
                [label, uuids],
            )
        )

    def _delete_beside(self) -> None:
        keys = self._some_keys(100)
        uuids = list(map(tile_uuid, keys))
        self._chronicle.change(
            keys,
            None,
            lambda: self._beside(
                lambda sql: sql.execute(
                    "DELETE FROM tiles WHERE tile_uuid = ANY(%s::uuid[])", [uuids]
                )
            ),
        )

    def _touch(self) -> None:
        references = [TileRef(tile_uuid=tile_uuid(key)) for key in self._some_keys(200)]
        with suppress(CallError):
            self._world.daemon.client.store.TouchTiles(
                TouchTilesRequest(tiles=references), timeout=CALL_TIMEOUT_S
            )

    def _relabel(self) -> None:
        admin = self._world.daemon.admin_client.admin
        sector = Sector(
            name="rear",
            classification=SECTOR_CLASSIFICATION_STABLE_REAR,
            bounding_box=BoundingBox(south=-85, west=-180, north=85, east=180),
        )
        with suppress(CallError):
            if self._random.random() < 0.5:
                admin.SetSector(SetSectorRequest(sector=sector), timeout=CALL_TIMEOUT_S)
            else:
                admin.DeleteSector(DeleteSectorRequest(name="rear"), timeout=CALL_TIMEOUT_S)

    def _beside(self, write: Callable[[psycopg.Connection[Any]], object]) -> None:
        """In one transaction of another program."""

        def attempt() -> None:
            with psycopg.connect(self._world.foreign.dsn) as sql:
                write(sql)

        until_done(attempt)


def until_done(write: Callable[[], object]) -> None:
    """Repeats a write that can be repeated until it succeeds."""

    def done() -> bool:
        try:
            write()
        except (CallError, psycopg.OperationalError):
            return False
        return True

    eventually(done, patience_s=90)


def version(key: TileKey, number: int) -> TileMetadata:
    """A tile's version, which tells its number. Each has a file of its own."""
    return tile(
        key,
        f"content {number}",
        captured_at=FIRST_CAPTURE + timedelta(seconds=number),
        file_path=f"{key.x}/{key.y}/{number}",
    )


class Follower:
    """A replica that follows moving areas, and checks each window that it reads."""

    def __init__(self, replica: TileReplica, chronicle: Chronicle, seed: int) -> None:
        self.replica = replica
        self._chronicle = chronicle
        self._random = random.Random(seed)
        self.windows = self.complete_windows = 0
        self.wrong: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        try:
            while not stop.is_set():
                if self._random.random() < 0.02:
                    self.replica.follow_areas([area(self._cells(SIDE))])
                self._check_window()
                stop.wait(0.002)
        except Exception as error:
            self.wrong.append(repr(error))
            raise

    def _cells(self, side: int) -> tuple[int, int, int, int]:
        x_from, y_from = (self._random.randrange(SIDE) for _ in range(2))
        x_to, y_to = (min(start + side, SIDE) - 1 for start in (x_from, y_from))
        return FIRST_X + x_from, FIRST_X + x_to, FIRST_Y + y_from, FIRST_Y + y_to

    def _check_window(self) -> None:
        cells = self._cells(20)
        read_at = time.monotonic()
        window = self.replica.cells(ZOOM, *cells, labels=LABELS)
        self.windows += 1
        numbers = {(found.key.x, found.key.y): number_of(found) for found in window}
        if len(numbers) != len(window):
            self.wrong.append("a window has a tile twice")
        if not window.complete:
            return
        self.complete_windows += 1
        x_from, x_to, y_from, y_to = cells
        for key in KEYS:
            if x_from <= key.x <= x_to and y_from <= key.y <= y_to:
                number = numbers.get((key.x, key.y))
                allowed = self._chronicle.allowed(key, read_at - window.age_s)
                if number not in allowed:
                    self.wrong.append(f"{key}: {number} at the age {window.age_s}, not {allowed}")


def number_of(found: TileMetadata) -> int:
    """The number of a tile's version; all of its fields must be of that version."""
    number = int(found.file_path.rpartition("/")[2])
    expected = version(found.key, number)
    assert found.content_sha256 == expected.content_sha256
    assert found.captured_at == expected.captured_at
    return number


def area(cells: tuple[int, int, int, int]) -> WatchedArea:
    return WatchedArea(zoom=ZOOM, region=cell_region(*cells))


@pytest.fixture
def world(foreign: ForeignPostgres, short_directory: Path) -> Iterator[World]:
    with DaemonProcess(short_directory, dsn=foreign.dsn) as daemon:
        yield World(foreign, daemon)


def test_replicas_are_true_at_every_moment(world: World, short_directory: Path) -> None:
    print(f"seed {SEED}")
    chronicle, choice = Chronicle(), random.Random(SEED)
    writer = Writer(world, chronicle, SEED)
    stop = threading.Event()
    with ExitStack() as closing:
        proxies, followers = [], []
        for number in range(REPLICAS):
            path = short_directory / f"proxy{number}.sock"
            proxies.append(closing.enter_context(SocketProxy(path, world.daemon.socket_path)))
            client = closing.enter_context(TileCacheClient(path))
            replica = closing.enter_context(client.replica())
            followers.append(Follower(replica, chronicle, SEED + number))
        threads = [threading.Thread(target=each.run, args=(stop,)) for each in followers]
        closing.callback(stop.set)
        for thread in threads:
            thread.start()

        def write() -> None:
            while not stop.is_set():
                writer.change()

        writing = threading.Thread(target=write)
        writing.start()
        faults = [
            world.restart_daemon,
            world.stop_daemon,
            world.restart_server,
            world.end_sessions,
            world.freeze_subscription,
            *(proxy.cut for proxy in proxies),
            *(lambda proxy=proxy: pause(proxy, choice) for proxy in proxies),
        ]
        deadline = time.monotonic() + DURATION_S
        while time.monotonic() < deadline and not any(each.wrong for each in followers):
            choice.choice(faults)()
            stop.wait(choice.uniform(0, 2))
        stop.set()
        for thread in (writing, *threads):
            thread.join()

        wrong = [text for each in followers for text in each.wrong]
        assert wrong == []
        print(f"{writer.changes} changes, {sum(each.windows for each in followers)} windows")
        assert all(each.complete_windows for each in followers)
        for each in followers:
            each.replica.follow_areas([area(ALL_CELLS)])
            eventually(lambda each=each: each.replica.synced and each.replica.age_s < 3)
            # A label may still change after a restart.
            eventually(lambda each=each: held(each.replica) == stored(world))


def pause(proxy: SocketProxy, choice: random.Random) -> None:
    """A client that does not read for a while."""
    proxy.stop()
    time.sleep(choice.uniform(0.1, 3))
    proxy.resume()


def stored(world: World) -> set[tuple[Any, ...]]:
    """The table."""
    with psycopg.connect(world.foreign.dsn) as connection:
        rows = connection.execute(
            "SELECT tile_uuid::text, x, y, content_sha256, file_path, freshness_status,"
            " extract(epoch FROM captured_at)::bigint FROM tiles"
        )
        return set(rows)


def held(replica: TileReplica) -> set[tuple[Any, ...]]:
    """The same of a replica."""
    window = replica.cells(ZOOM, *ALL_CELLS, labels=LABELS)
    assert window.complete
    return {
        (
            found.tile_uuid,
            found.key.x,
            found.key.y,
            found.content_sha256,
            found.file_path,
            FreshnessLabel.Name(found.freshness_label).removeprefix("FRESHNESS_LABEL_").lower(),
            found.captured_at.seconds,
        )
        for found in window
    }
