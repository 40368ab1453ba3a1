"""What memory answers is what the table holds, whoever writes.

Writers of both kinds, the daemon's clients and plain SQL, change tiles of a few
blocks while readers look, and the daemon's ear is cut off now and then. A
tile's `disk_bytes` counts its versions. `TILECACHE_SOAK_S` makes the run longer,
`TILECACHE_SEED` another one.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import YESTERDAY, by_id, cell_region, insert, tile, tile_key, tile_uuid
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    LookupTilesRequest,
    QueryTilesRequest,
    TileMetadata,
    TouchTilesRequest,
)

Cell = tuple[int, int]
Versions = dict[Cell, int]

ZOOM = 17
X_RANGE, Y_RANGE = (60, 69), (90, 99)  # four blocks meet here
CELLS = [(x, y) for x in range(60, 70) for y in range(90, 100)]
REGION = cell_region(*X_RANGE, *Y_RANGE)
RUN_S = float(os.environ.get("TILECACHE_SOAK_S", "5"))
SEED = int(os.environ.get("TILECACHE_SEED", "1"))
TIMEOUT_S = 60.0


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[DaemonProcess]:
    """A daemon that writes every access, and soon."""
    with DaemonProcess(
        short_directory, dsn=database, access_flush_interval_s=0.2, access_recent_s=0
    ) as process:
        yield process


def test_answers_are_never_older_than_what_was_acknowledged(
    daemon: DaemonProcess, database: str
) -> None:
    over = threading.Event()
    acknowledged: Versions = {}

    def until_over(step: Callable[[], None]) -> None:
        while not over.is_set():
            step()

    with (
        TileCacheClient(daemon.admin_socket_path) as client,
        psycopg.connect(database, autocommit=True) as connection,
        ThreadPoolExecutor() as threads,
    ):
        work = [
            until_over_of(until_over, threads, step)
            for step in (
                client_writer(client, CELLS[0::4], acknowledged, seed=SEED),
                client_writer(client, CELLS[1::4], acknowledged, seed=SEED + 1),
                sql_writer(connection, CELLS[2::4], seed=SEED + 2),
                reader(client, acknowledged, seed=SEED + 3),
                reader(client, acknowledged, seed=SEED + 4),
                deafener(database, seed=SEED + 5),
            )
        ]
        over.wait(RUN_S)
        over.set()
        for future in work:
            future.result()
        eventually(lambda: everything_known(client) == everything_stored(connection))


def until_over_of(
    until_over: Callable[[Callable[[], None]], None],
    threads: ThreadPoolExecutor,
    step: Callable[[], None],
) -> "Future[None]":
    return threads.submit(until_over, step)


def client_writer(
    client: TileCacheClient, own: list[Cell], acknowledged: Versions, seed: int
) -> Callable[[], None]:
    """Writes, replaces and deletes its own cells, and finds each answer true at once."""
    chance, versions = random.Random(seed), dict.fromkeys(own, 0)

    def step() -> None:
        cell = chance.choice(own)
        if chance.random() < 0.2:
            acknowledged.pop(cell, None)
            deletion = DeleteTilesRequest(tile_uuids=[tile_uuid(tile_key(ZOOM, *cell))])
            list(client.admin.DeleteTiles(deletion, timeout=TIMEOUT_S))
            assert read_versions(client, [cell]) == {}
        else:
            versions[cell] += 1
            insert(client, make(cell, versions[cell]), ON_CONFLICT_REPLACE_IF_NEWER)
            acknowledged[cell] = versions[cell]
            assert read_versions(client, [cell]) == {cell: versions[cell]}

    return step


def sql_writer(
    connection: "psycopg.Connection[tuple[object, ...]]", own: list[Cell], seed: int
) -> Callable[[], None]:
    """Copies a client's tile to its own cells, changes it and takes it away."""
    chance = random.Random(seed)
    statements = (
        """INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,
               tile_size_meters, tile_size_pixels, file_path, content_sha256, disk_bytes,
               captured_at)
           VALUES (%(id)s, %(id)s, 17, %(x)s, %(y)s, 'googlemaps', 0, 0, 1, 256, 'a.jpg',
               repeat('a', 64), 1, now())
           ON CONFLICT DO NOTHING""",
        "UPDATE tiles SET disk_bytes = disk_bytes + 1 WHERE tile_uuid = %(id)s",
        "UPDATE tiles SET freshness_status = 'rejected' WHERE tile_uuid = %(id)s",
        "UPDATE tiles SET freshness_status = 'fresh', accessed_at = now() WHERE x = %(x)s"
        " AND tile_uuid = %(id)s",
        "DELETE FROM tiles WHERE tile_uuid = %(id)s",
    )

    def step() -> None:
        x, y = cell = chance.choice(own)
        parameters = {"id": tile_uuid(tile_key(ZOOM, *cell)), "x": x, "y": y}
        connection.execute(chance.choice(statements), parameters)

    return step


def reader(client: TileCacheClient, acknowledged: Versions, seed: int) -> Callable[[], None]:
    """Finds no tile older than it was acknowledged to be before."""
    chance = random.Random(seed)

    def step() -> None:
        before = dict(acknowledged)
        if chance.random() < 0.1:
            refs = [by_id(tile_key(ZOOM, *chance.choice(CELLS)))]
            client.store.TouchTiles(TouchTilesRequest(tiles=refs), timeout=TIMEOUT_S)
        by_box = chance.random() < 0.5
        found = query_versions(client) if by_box else read_versions(client, CELLS)
        stale = {
            cell: (version, before[cell])
            for cell, version in found.items()
            if version < before.get(cell, 0)
        }
        assert stale == {}

    return step


def deafener(database: str, seed: int) -> Callable[[], None]:
    """Cuts the connection on which the daemon hears of changes."""
    chance, pause = random.Random(seed), threading.Event()

    def step() -> None:
        pause.wait(chance.uniform(0.2, 1.0))
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'tilecache-changes'"
            )

    return step


def make(cell: Cell, version: int) -> TileMetadata:
    """A version of a cell's tile: content, file, size and capture all differ."""
    return tile(
        tile_key(ZOOM, *cell),
        content=str(version),
        captured_at=YESTERDAY - timedelta(days=20) + timedelta(seconds=version),
        disk_bytes=version,
        file_path=f"{cell[0]}/{cell[1]}.{version}.jpg",
    )


def read_versions(client: TileCacheClient, cells: list[Cell]) -> Versions:
    """By id."""
    refs = [by_id(tile_key(ZOOM, *cell)) for cell in cells]
    results = client.store.LookupTiles(LookupTilesRequest(tiles=refs), timeout=TIMEOUT_S).results
    return {
        cell: result.tile.disk_bytes
        for cell, result in zip(cells, results, strict=True)
        if result.HasField("tile")
    }


def query_versions(client: TileCacheClient) -> Versions:
    """By region."""
    request = QueryTilesRequest(zoom=ZOOM, region=REGION)
    return {
        (found.key.x, found.key.y): found.disk_bytes
        for answer in client.store.QueryTiles(request, timeout=TIMEOUT_S)
        for found in answer.tiles
    }


def everything_known(client: TileCacheClient) -> Mapping[str, tuple[object, ...]]:
    """All tiles as the daemon answers them, whatever their label."""
    request = QueryTilesRequest(zoom=ZOOM, region=REGION, labels=[1, 2, 3, 4, 5])
    return {
        found.tile_uuid: (
            found.disk_bytes,
            found.freshness_label,
            found.file_path,
            found.accessed_at.ToNanoseconds() if found.HasField("accessed_at") else None,
        )
        for answer in client.store.QueryTiles(request, timeout=TIMEOUT_S)
        for found in answer.tiles
    }


def everything_stored(
    connection: "psycopg.Connection[tuple[object, ...]]",
) -> Mapping[str, tuple[object, ...]]:
    """The same as the table has it."""
    rows = connection.execute(
        """SELECT tile_uuid::text, disk_bytes,
                  array_position(ARRAY['fresh', 'stale_warn', 'stale_reject', 'downgraded',
                                       'rejected'], freshness_status),
                  file_path,
                  (extract(epoch FROM accessed_at) * 1000000)::bigint * 1000
           FROM tiles"""
    )
    return {str(row[0]): row[1:] for row in rows}
