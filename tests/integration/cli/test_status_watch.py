"""`tilecache status`: usage and activity, and `--watch` on a terminal."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from google.protobuf.message_factory import GetMessageClass

from tests.admin import evict, touch
from tests.clocked_daemon import ClockedDaemon
from tests.daemon_process import (
    EXIT_TIMEOUT_S,
    TILECACHE,
    DaemonProcess,
    daemon_environment,
    run_tilecache,
)
from tests.tiles import NOW, TIMEOUT_S, Block, by_key, insert, store_row, tile
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1 import tile_cache_admin_pb2, tile_metadata_store_pb2
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest, WatchedArea
from tilecache_daemon.models import Limits
from tilecache_daemon.schema.migrator import REVISIONS

EXIT_USAGE = 2
NEVER_S = 3_600
WEEK_S = 7 * 86_400


class Watcher:
    """`tilecache status --watch` on a terminal of its own."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._terminal, inside = pty.openpty()
        self.process = subprocess.Popen(
            [TILECACHE, "status", "--watch", "--interval", "0.05", "--socket", daemon.socket_path],
            env=daemon_environment() | {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
        )
        os.close(inside)
        self._seen = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def sees(self, text: str) -> bool:
        """Waits until the screen shows a text that is written from now on."""
        self._seen = b""
        return eventually(lambda: text.encode() in self._seen)

    def stop(self) -> int:
        """Sends what Ctrl-C sends; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(EXIT_TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._terminal)

    def _read(self) -> None:
        # Reading a terminal whose other end is closed fails.
        with suppress(OSError):
            while data := os.read(self._terminal, 65_536):
                self._seen += data


@contextmanager
def watching(daemon: DaemonProcess) -> Iterator[Watcher]:
    watcher = Watcher(daemon)
    try:
        yield watcher
    finally:
        watcher.close()


def test_watch_follows_the_daemon_until_ctrl_c(daemon: DaemonProcess, block: Block) -> None:
    with watching(daemon) as watcher:
        assert watcher.sees("0 tiles")
        insert(daemon.client, tile(block.key(), disk_bytes=4_321))
        assert watcher.sees("1 tile (4.3 kB), no ceiling")
        daemon.stop()
        assert watcher.sees("the daemon does not answer")
        daemon.start()
        assert watcher.sees("1 tile (4.3 kB), no ceiling")
        assert watcher.stop() == 0


def test_the_usage_is_shown_with_the_ceiling(database: str, short_directory: Path) -> None:
    with DaemonProcess(short_directory, dsn=database, max_used_bytes=10_000) as daemon:
        insert(daemon.client, tile(Block().key(), disk_bytes=5_000))
        shown = run_tilecache("status", "--socket", daemon.socket_path)
        as_json = run_tilecache("status", "--json", "--socket", daemon.socket_path)
    assert "1 tile (5.0 kB), 50% of 10.0 kB" in shown.stdout
    assert json.loads(as_json.stdout)["usage"]["total"]["used_bytes"] == "5000"


def read_activity(daemon: DaemonProcess) -> dict[str, Any]:
    shown = run_tilecache("status", "--json", "--socket", daemon.socket_path)
    activity: dict[str, Any] = json.loads(shown.stdout)["activity"]
    return activity


def show(daemon: DaemonProcess) -> str:
    return run_tilecache("status", "--socket", daemon.socket_path).stdout


def test_the_screen_shows_the_metrics(daemon: DaemonProcess, block: Block) -> None:
    insert(daemon.client, tile(block.key()))
    for offset in range(3):
        with suppress(CallError):
            request = GetTileRequest(tile=by_key(block.key(offset)))
            daemon.client.store.GetTile(request, timeout=TIMEOUT_S)

    activity = read_activity(daemon)
    calls = {call["method"]: call for call in activity["calls"]}
    assert (calls["GetTile"]["ended"], calls["GetTile"]["failed"]) == (3, 2)
    assert calls["GetTile"]["failed_by_code"] == {"NOT_FOUND": 2}
    assert (calls["InsertTile"]["ended"], calls["InsertTile"]["failed"]) == (1, 0)
    assert "QueryTiles" not in calls
    assert 0 < calls["GetTile"]["p50_s"] <= calls["GetTile"]["p99_s"]
    assert activity["pool_connections_max"] >= activity["pool_connections"] > 0
    assert activity["calls_under_way"] == 1
    assert activity["calls_max"] == Limits().max_concurrent_calls
    shown = show(daemon)
    assert re.search(r"GetTile +3 +up to [\d.]+ m?s +up to [\d.]+ m?s +2 NOT_FOUND", shown)
    assert f"1 of {Limits().max_concurrent_calls}" in shown


def test_the_screen_shows_pending_writes(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=NEVER_S) as daemon:
        insert(daemon.client, tile(block.key()))
        touch(daemon.client, block.key())
        assert read_activity(daemon)["accesses_pending"] == 1
        assert re.search(r"pending writes +1 accesses", show(daemon))


def test_the_screen_shows_the_migrations_at_start(
    empty_database: str, short_directory: Path
) -> None:
    with DaemonProcess(short_directory, dsn=empty_database) as daemon:
        assert read_activity(daemon)["migrations_applied"] == len(REVISIONS)
        assert read_activity(daemon)["migration_seconds"] > 0
        assert f"{len(REVISIONS)} applied at start," in show(daemon)


def test_the_screen_shows_the_age_of_evicted_tiles(short_directory: Path, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        for offset, age in enumerate((timedelta(hours=1), timedelta(days=5), timedelta(days=20))):
            store_row(sql, Block().key(offset), disk_bytes=100, accessed_at=NOW - age)
    with ClockedDaemon(short_directory, NOW, dsn=database) as daemon:
        assert "0 tiles since start" in show(daemon)
        evict(daemon.admin_client, free_bytes=300)
        activity = read_activity(daemon)
        assert (activity["evicted_tiles"], activity["eviction_age_p50_s"]) == (3, WEEK_S)
        assert "3 tiles since start, half of them unused for up to 7 days" in show(daemon)


def test_an_age_beyond_all_bounds_has_no_upper_bound(short_directory: Path, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        ancient = NOW - timedelta(days=2_000)
        store_row(sql, Block().key(), disk_bytes=100, accessed_at=ancient)
    with ClockedDaemon(short_directory, NOW, dsn=database) as daemon:
        evict(daemon.admin_client, free_bytes=100)
        assert read_activity(daemon)["eviction_age_p50_s"] is None
        assert "half of them unused for over 730 days" in show(daemon)


def test_the_screen_shows_the_uptime(short_directory: Path, database: str) -> None:
    with ClockedDaemon(short_directory, NOW, dsn=database) as daemon:
        daemon.pass_time(timedelta(days=1, hours=3))
        assert re.search(r"uptime +1 day, 3:00:00", show(daemon))


def test_an_outage_hides_only_what_is_stored(
    daemon: DaemonProcess, database: str, postgres_dsn: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    with psycopg.connect(postgres_dsn, autocommit=True) as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
    eventually(lambda: not daemon.client.is_serving())
    shown = show(daemon)
    assert "unknown while the database is not available" in shown
    assert "0 of 0 in use" in shown
    assert "GetServerInfo" in shown


def test_the_screen_fits_80_columns_and_40_lines_after_calls_of_every_rpc(
    daemon: DaemonProcess,
) -> None:
    called = call_every_rpc(daemon.admin_client)
    calls = read_activity(daemon)["calls"]
    assert called <= {call["method"] for call in calls}
    lines = show(daemon).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"\d+ others +\d+ +--json lists all", line) for line in lines)


def call_every_rpc(client: TileCacheClient) -> set[str]:
    """Calls each RPC with an empty request; returns their names."""
    called = set()
    for module, stub in (
        (tile_metadata_store_pb2, client.store),
        (tile_cache_admin_pb2, client.admin),
    ):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = GetMessageClass(method.input_type)()
                call = getattr(stub, method.name)
                with suppress(CallError):
                    if method.client_streaming:
                        list(call(iter([request]), timeout=TIMEOUT_S))
                    elif method.server_streaming:
                        list(call(request, timeout=TIMEOUT_S))
                    else:
                        call(request, timeout=TIMEOUT_S)
                called.add(method.name)
    return called


def test_open_replicas_are_counted_without_a_latency(daemon: DaemonProcess, block: Block) -> None:
    with daemon.client.replica() as replica:
        replica.follow_areas([WatchedArea(zoom=block.zoom, region=block.region)])
        replica.wait_until_synced(TIMEOUT_S)
        assert "replicas 1 of 32" in show(daemon)
        assert read_activity(daemon)["watches_open"] == 1
    eventually(lambda: watched_calls(daemon))
    assert [call["p50_s"] for call in watched_calls(daemon)] == [None]
    assert read_activity(daemon)["watches_open"] == 0


def watched_calls(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """WatchTiles among the calls that have ended."""
    return [call for call in read_activity(daemon)["calls"] if call["method"] == "WatchTiles"]


def test_without_the_admin_socket_the_rest_is_shown(daemon: DaemonProcess) -> None:
    shown = run_tilecache(
        "status", "--socket", daemon.socket_path, "--admin-socket", "/nonexistent/admin.sock"
    )
    assert shown.returncode == 0
    assert "available on the admin socket only" in shown.stdout
    assert "ready" in shown.stdout


def test_watch_excludes_json(daemon: DaemonProcess) -> None:
    refused = run_tilecache("status", "--watch", "--json", "--socket", daemon.socket_path)
    assert refused.returncode == EXIT_USAGE
