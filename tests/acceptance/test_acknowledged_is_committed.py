"""What was acknowledged survives the end of the daemon, of PostgreSQL, and of both.

The daemon runs a PostgreSQL of its own with its default, durable settings.
"""

import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import YESTERDAY, by_key, insert, sha256, tile, tile_key
from tests.waiting import eventually
from tilecache.errors import CallError
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    GetTileRequest,
    LookupTilesRequest,
    TileMetadata,
    TouchTilesRequest,
)

BATCH_TILES = 200
BATCHES = 100
KILL_AFTER_BATCHES = 8


@pytest.fixture
def durable_daemon(open_directory: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(open_directory) as process:
        yield process


def postgres_pid(daemon: DaemonProcess) -> int:
    pid_file = daemon.socket_path.parent / "state/postgres/data/postmaster.pid"
    return int(pid_file.read_text().split()[0])


def kill_daemon(daemon: DaemonProcess) -> None:
    daemon.kill()
    daemon.start()


def kill_postgres(daemon: DaemonProcess) -> None:
    pid = postgres_pid(daemon)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: postgres_pid(daemon) != pid)
    eventually(daemon.client.is_serving)


def kill_both(daemon: DaemonProcess) -> None:
    os.kill(postgres_pid(daemon), signal.SIGKILL)
    kill_daemon(daemon)


def batch_keys(number: int) -> list[TileKey]:
    return [tile_key(18, 1_000 + i, 90_000 + number) for i in range(BATCH_TILES)]


def batches() -> Iterator[BulkInsertTilesRequest]:
    for number in range(BATCHES):
        yield BulkInsertTilesRequest(tiles=[tile(key, str(number)) for key in batch_keys(number)])


def lookup(daemon: DaemonProcess, keys: list[TileKey]) -> list[TileMetadata]:
    request = LookupTilesRequest(tiles=map(by_key, keys))
    return [result.tile for result in daemon.client.store.LookupTiles(request, timeout=60).results]


def assert_whole(daemon: DaemonProcess, number: int) -> None:
    found = lookup(daemon, batch_keys(number))
    assert [tile.content_sha256 for tile in found] == [sha256(str(number))] * BATCH_TILES


@pytest.mark.parametrize("kill", [kill_daemon, kill_postgres, kill_both])
def test_every_tile_of_every_acknowledged_batch_is_there(
    durable_daemon: DaemonProcess, kill: Callable[[DaemonProcess], None]
) -> None:
    answers = durable_daemon.client.store.BulkInsertTiles(batches(), timeout=120)
    acknowledged = [next(answers).batch_index for _ in range(KILL_AFTER_BATCHES)]
    kill(durable_daemon)
    with pytest.raises(CallError):
        acknowledged += (answer.batch_index for answer in iter(answers))
    assert acknowledged == list(range(len(acknowledged)))
    assert KILL_AFTER_BATCHES <= len(acknowledged) < BATCHES
    for number in acknowledged:
        assert_whole(durable_daemon, number)
    assert_batches_are_all_or_nothing(durable_daemon)
    # The same stream again ends with every tile there once.
    again = list(durable_daemon.client.store.BulkInsertTiles(batches(), timeout=120))
    assert sum(answer.inserted_count + answer.already_present_count for answer in again) == (
        BATCHES * BATCH_TILES
    )
    assert not any(answer.refused for answer in again)


def assert_batches_are_all_or_nothing(daemon: DaemonProcess) -> None:
    for number in range(0, BATCHES, 7):
        found = {bool(tile.tile_uuid) for tile in lookup(daemon, batch_keys(number))}
        assert len(found) == 1


def test_a_single_acknowledged_insert_survives_both(durable_daemon: DaemonProcess) -> None:
    keys = batch_keys(0)[:20]
    stored = [insert(durable_daemon.client, tile(key)).tile for key in keys]
    kill_both(durable_daemon)
    assert lookup(durable_daemon, keys) == stored


def test_recorded_uses_are_written_by_an_orderly_stop(open_directory: Path) -> None:
    with DaemonProcess(open_directory, access_flush_interval_s=3_600) as daemon:
        key = tile_key(18, 1, 1)
        insert(daemon.client, tile(key, captured_at=YESTERDAY - timedelta(days=1)))
        daemon.client.store.TouchTiles(TouchTilesRequest(tiles=[by_key(key)]), timeout=60)
        assert daemon.stop() == 0
        daemon.start()
        request = GetTileRequest(tile=by_key(key))
        assert daemon.client.store.GetTile(request, timeout=60).tile.HasField("accessed_at")
