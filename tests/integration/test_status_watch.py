"""`tilecache status`: the usage on its screen, and `--watch` on a terminal."""

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
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest

from tests.admin import evict
from tests.daemon_process import (
    EXIT_TIMEOUT_S,
    TILECACHE,
    DaemonProcess,
    daemon_environment,
    run_tilecache,
)
from tests.tiles import NOW, TIMEOUT_S, Block, by_key, insert, store_row, tile
from tests.waiting import eventually
from tilecache_daemon.client import CallError
from tilecache_daemon.models import Limits

EXIT_USAGE = 2


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
        """Whether the screen shows a text, from now on."""
        self._seen = b""
        return eventually(lambda: text.encode() in self._seen)

    def stop(self) -> int:
        """As Ctrl-C does; gives the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(EXIT_TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._terminal)

    def _read(self) -> None:
        # A terminal whose other end is closed gives an error.
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


def test_a_watched_screen_follows_the_daemon_until_ctrl_c(
    daemon: DaemonProcess, block: Block
) -> None:
    with watching(daemon) as watcher:
        assert watcher.sees("0 tiles")
        insert(daemon.client, tile(block.key(), disk_bytes=4_321))
        assert watcher.sees("1 tile (4.3 kB), no ceiling")
        daemon.stop()
        assert watcher.sees("no daemon answers")
        daemon.start()
        assert watcher.sees("1 tile (4.3 kB), no ceiling")
        assert watcher.stop() == 0


def test_the_usage_is_shown_beside_the_ceiling(database: str, short_directory: Path) -> None:
    with DaemonProcess(short_directory, dsn=database, max_used_bytes=10_000) as daemon:
        insert(daemon.client, tile(Block().key(), disk_bytes=5_000))
        shown = run_tilecache("status", "--socket", daemon.socket_path)
        told = run_tilecache("status", "--json", "--socket", daemon.socket_path)
    assert "1 tile (5.0 kB), 50% of 10.0 kB" in shown.stdout
    assert json.loads(told.stdout)["usage"]["total"]["used_bytes"] == "5000"


def test_the_screen_tells_what_the_metrics_tell(daemon: DaemonProcess, block: Block) -> None:
    insert(daemon.client, tile(block.key()))
    for offset in range(3):
        with suppress(CallError):
            request = GetTileRequest(tile=by_key(block.key(offset)))
            daemon.client.store.GetTile(request, timeout=TIMEOUT_S)

    def told() -> dict[str, Any]:
        shown = run_tilecache("status", "--json", "--socket", daemon.socket_path)
        activity: dict[str, Any] = json.loads(shown.stdout)["activity"]
        return activity

    calls = {call["method"]: call for call in told()["calls"]}
    assert (calls["GetTile"]["ended"], calls["GetTile"]["failed"]) == (3, 2)
    assert (calls["InsertTile"]["ended"], calls["InsertTile"]["failed"]) == (1, 0)
    assert "QueryTiles" not in calls
    assert 0 < calls["GetTile"]["p50_s"] <= calls["GetTile"]["p99_s"]
    assert told()["pool_connections_max"] >= told()["pool_connections"] > 0
    assert told()["calls_max"] == Limits().max_concurrent_calls
    shown = run_tilecache("status", "--socket", daemon.socket_path).stdout
    assert re.search(r"GetTile +3 +2 +[\d.]+ m?s", shown)
    for row in ("calls now", "connections", "to write", "migrated", "evicted"):
        assert row in shown


def test_the_screen_tells_the_age_of_what_was_evicted(short_directory: Path, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        store_row(sql, Block().key(), disk_bytes=100, accessed_at=NOW - timedelta(days=5))
    with DaemonProcess(short_directory, dsn=database) as daemon:
        evict(daemon.admin_client, free_bytes=100)
        shown = run_tilecache("status", "--socket", daemon.socket_path).stdout
    assert "1 since the start, half unused for up to" in shown


def test_the_screen_fits_one_of_80_columns(daemon: DaemonProcess) -> None:
    shown = run_tilecache("status", "--socket", daemon.socket_path).stdout
    assert len(shown.splitlines()) <= 40
    assert max(map(len, shown.splitlines())) <= 80


def test_without_the_administrators_socket_the_rest_is_shown(daemon: DaemonProcess) -> None:
    shown = run_tilecache(
        "status", "--socket", daemon.socket_path, "--admin-socket", "/nonexistent/admin.sock"
    )
    assert shown.returncode == 0
    assert "told on the administrator's socket only" in shown.stdout
    assert "ready" in shown.stdout


def test_json_is_not_watched(daemon: DaemonProcess) -> None:
    refused = run_tilecache("status", "--watch", "--json", "--socket", daemon.socket_path)
    assert refused.returncode == EXIT_USAGE
