"""Background tasks of a running daemon meet errors that nobody expects, and recover."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import touch
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.failing_writes import failing_access_writes
from tests.scraping import Scrape, scrape
from tests.tiles import TIMEOUT_S, Block, by_key, insert, tile
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import GetMetricsRequest
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest
from tilecache_daemon.config import Config
from tilecache_daemon.daemon import Daemon
from tilecache_daemon.observability.metrics import Metrics
from tilecache_daemon.observability.metrics_listener import MetricsListener
from tilecache_daemon.rpc.call_counts import CallCounts
from tilecache_daemon.store import database as database_module
from tilecache_daemon.supervisor import Supervisor


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[DaemonProcess]:
    """It writes accesses at once."""
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=0.05) as process:
        yield process


def metrics(daemon: DaemonProcess) -> Scrape:
    answer = daemon.admin_client.admin.GetMetrics(GetMetricsRequest(), timeout=TIMEOUT_S)
    return Scrape(answer.text)


def failures(daemon: DaemonProcess, task: str) -> float:
    return metrics(daemon).value("tilecache_background_task_failures_total", task=task)


def is_running(daemon: DaemonProcess, task: str) -> bool:
    return bool(metrics(daemon).value("tilecache_background_task_running", task=task))


def test_accesses_are_written_after_an_unexpected_error(
    daemon: DaemonProcess, database: str
) -> None:
    key, client = Block().key(), daemon.client
    insert(client, tile(key))
    with failing_access_writes(database):
        touch(client, key)
        eventually(lambda: failures(daemon, "access-log") >= 2)
        eventually(lambda: not is_running(daemon, "access-log"))
        assert client.is_serving()
    request = GetTileRequest(tile=by_key(key))
    eventually(
        lambda: client.store.GetTile(request, timeout=TIMEOUT_S).tile.HasField("accessed_at")
    )
    assert is_running(daemon, "access-log")
    assert is_running(daemon, "change-feed")
    assert failures(daemon, "change-feed") == 0
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    logged = [line for line in lines if line["kind"] == "background_task_failed"]
    assert [line["kv"]["failures"] for line in logged] == list(range(1, len(logged) + 1))
    assert logged[0]["kv"]["task"] == "access-log"
    assert "DivisionByZero" in logged[0]["exception"]
    assert "Traceback" in logged[0]["exception"]


def test_status_names_a_task_that_failed(daemon: DaemonProcess, database: str) -> None:
    def shown(*options: str) -> str:
        return run_tilecache("status", "--socket", daemon.socket_path, *options).stdout

    assert "all running, no failures" in shown()
    key = Block().key()
    insert(daemon.client, tile(key))
    with failing_access_writes(database):
        touch(daemon.client, key)
        eventually(lambda: failures(daemon, "access-log"))
        assert "access-log: " in shown()
        tasks = json.loads(shown("--json"))["activity"]["background_tasks"]
        (task,) = (task for task in tasks if task["name"] == "access-log")
        assert task["failures"] >= 1


@pytest.mark.parametrize("payload", ["", "x", "x y", "x 1/2", "x 99/0/0", "x !"])
def test_a_notification_that_nobody_understands_does_not_stop_the_change_feed(
    daemon: DaemonProcess, database: str, payload: str
) -> None:
    key, client = Block().key(), daemon.client
    insert(client, tile(key))
    request = GetTileRequest(tile=by_key(key))

    def path() -> str:
        return str(client.store.GetTile(request, timeout=TIMEOUT_S).tile.file_path)

    def is_answered_from_memory() -> bool:
        hits = metrics(daemon).value("tilecache_cache_hits_total")
        path()
        return metrics(daemon).value("tilecache_cache_hits_total") > hits

    eventually(is_answered_from_memory)
    with psycopg.connect(database, autocommit=True) as sql:
        sql.execute("SELECT pg_notify('tilecache_changes', %s)", [payload])
        sql.execute("UPDATE tiles SET file_path = 'changed.jpg'")
        eventually(lambda: path() == "changed.jpg")
        eventually(is_answered_from_memory)
        sql.execute("UPDATE tiles SET file_path = 'changed again.jpg'")
        eventually(lambda: path() == "changed again.jpg")


async def test_a_database_monitor_that_fails_makes_the_daemon_unready_until_it_runs_again(
    database: str, short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket_path = short_directory / "s"
    config = Config(dsn=database, socket_path=socket_path, admin_socket_path=short_directory / "a")
    broken = asyncio.Event()

    async def execute(*arguments: Any) -> None:
        if broken.is_set():
            raise LookupError("as the test wants it")
        await real_execute(*arguments)

    real_execute = database_module.execute_promptly
    monkeypatch.setattr(database_module, "execute_promptly", execute)
    daemon = Daemon(config)
    await daemon.start()
    try:
        with TileCacheClient(socket_path) as client:
            assert await asyncio.to_thread(client.is_serving)
            broken.set()
            await asyncio.to_thread(eventually, lambda: not client.is_serving())
            assert "background task database-monitor" in daemon.condition
            assert "LookupError: as the test wants it" in daemon.condition
            assert await asyncio.to_thread(client.is_serving, "")
            broken.clear()
            await asyncio.to_thread(eventually, client.is_serving)
            assert daemon.condition.startswith("serving; ")
    finally:
        await daemon.stop()


def test_a_postgresql_that_cannot_be_restarted_is_tried_again(short_directory: Path) -> None:
    short_directory.chmod(0o755)
    data = short_directory / "state" / "postgres" / "data"
    settings, hidden = data / "postgresql.conf", data / "postgresql.conf.hidden"
    with DaemonProcess(short_directory) as daemon:
        settings.rename(hidden)
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        eventually(lambda: failures(daemon, "postgres-restart"))
        eventually(lambda: not daemon.client.is_serving())
        hidden.rename(settings)
        eventually(daemon.client.is_serving)
        insert(daemon.client, tile(Block().key()))
        assert "PostgreSQL did not start" in daemon.log
        assert daemon.stop() == 0


async def test_metrics_are_served_again_after_an_error_in_their_thread(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = short_directory / "metrics.sock"
    listener = MetricsListener(str(address), Metrics(CallCounts(lambda: 0)).registry, 0o600, None)
    listener.listen()
    error = [LookupError()]

    def fail_once() -> None:
        if error:
            raise error.pop()

    monkeypatch.setattr(listener._server, "service_actions", fail_once)
    task = Supervisor(lambda: 0).start("metrics-listener", listener.run)
    try:
        assert await asyncio.to_thread(scrape, address)
        await asyncio.to_thread(eventually, lambda: task.failures)
        assert await asyncio.to_thread(scrape, address)
        assert task.running
    finally:
        await task.stop()
        listener.close()
    assert not address.exists()


def test_an_orderly_stop_logs_no_warning(
    database: str, short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    with DaemonProcess(short_directory, dsn=database) as daemon:
        insert(daemon.client, tile(Block().key()))
        with psycopg.connect(database, autocommit=True) as sql:
            probes = (
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'tilecache-probe'"
            )
            eventually(lambda: sql.execute(probes).rowcount)
        assert daemon.stop() == 0
    assert "Warning" not in daemon.log
    assert {json.loads(line)["level"] for line in daemon.log.splitlines()} == {"info"}
