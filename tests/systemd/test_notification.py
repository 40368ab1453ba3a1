"""The notifications to systemd, received by the test."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.admin import touch
from tests.daemon_process import DaemonProcess
from tests.failing_writes import failing_access_writes
from tests.migration.observed_database import Database
from tests.tiles import Block, insert, tile
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import BulkInsertTilesRequest
from tilecache_daemon import systemd

TIMEOUT_S = 60
LONG_DRAIN_S = 2 * systemd._REPORT_INTERVAL_S


class Manager:
    """Receives the messages that a service sends to its service manager."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(TIMEOUT_S)

    def receive(self) -> list[str]:
        """The assignments of the next message."""
        return self._socket.recv(4096).decode().splitlines()

    def receive_until(self, assignment: str) -> list[str]:
        """All assignments up to the given one."""
        received: list[str] = []
        deadline = time.monotonic() + TIMEOUT_S
        while assignment not in received:
            assert time.monotonic() < deadline, f"there is no {assignment} among {received}"
            received += self.receive()
        return received

    def pending(self) -> list[str]:
        """All assignments received so far."""
        self._socket.setblocking(False)
        received = []
        with contextlib.suppress(BlockingIOError):
            while True:
                received += self.receive()
        return received

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(short_directory / "notify")
    manager = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield manager
    manager.close()


def test_a_start_reports_its_steps_and_is_ready_when_it_serves(
    manager: Manager, short_directory: Path, empty_database: str
) -> None:
    with DaemonProcess(short_directory, dsn=empty_database) as daemon:
        before = manager.receive_until("READY=1")
        with TileCacheClient(daemon.socket_path) as client:
            assert client.is_serving()

        statuses = [word for word in before if word.startswith("STATUS=")]
        assert statuses[:2] == ["STATUS=waiting for the database", "STATUS=migrating the schema"]
        assert any(word.startswith("EXTEND_TIMEOUT_USEC=") for word in before)
        assert "WATCHDOG=1" not in before


def test_a_migration_reports_its_progress(
    manager: Manager, short_directory: Path, empty_database: str
) -> None:
    old = Database(empty_database)
    old.upgrade_to("0001_initial")
    old.insert_old_tile(18, 154321, 95812, "googlemaps")

    with DaemonProcess(short_directory, dsn=old.dsn):
        statuses = manager.receive_until("READY=1")

    assert "STATUS=migrating the schema: derived the ids of 1 of 1 tiles" in statuses


def test_it_sends_keep_alives_until_it_stops(
    manager: Manager, short_directory: Path, database: str
) -> None:
    with DaemonProcess(short_directory, dsn=database, drain_timeout_s=LONG_DRAIN_S) as daemon:
        for _ in range(3):
            assert "STATUS=serving" in manager.receive_until("WATCHDOG=1")

        with call_under_way(daemon.admin_client):
            assert daemon.stop() == 0

    assert manager.receive_until("STOPPING=1")
    assert "WATCHDOG=1" not in manager.pending()


@contextlib.contextmanager
def call_under_way(client: TileCacheClient) -> Iterator[None]:
    """A call on the admin socket that delays the stop, while the other socket still serves."""
    ended = threading.Event()

    def batches() -> Iterator[BulkInsertTilesRequest]:
        yield BulkInsertTilesRequest(tiles=[tile(Block().key())])
        ended.wait()

    answers = client.store.BulkInsertTiles(batches())
    next(answers)
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(CallError):
            next(answers, None)


async def test_a_server_that_does_not_answer_sends_no_keep_alives(
    manager: Manager,
    short_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    silent = short_directory / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent))
        listener.listen()

        async with systemd.serving(silent, lambda: "serving"):
            await asyncio.to_thread(
                eventually,
                lambda: "The daemon's own health check failed: Deadline Exceeded" in caplog.text,
            )

    received = manager.pending()
    assert received[0] == "READY=1"
    assert "WATCHDOG=1" not in received


def test_it_says_which_background_task_failed(
    manager: Manager, short_directory: Path, database: str
) -> None:
    with (
        DaemonProcess(short_directory, dsn=database, access_flush_interval_s=0.05) as daemon,
        failing_access_writes(database),
    ):
        key = Block().key()
        insert(daemon.client, tile(key))
        touch(daemon.client, key)

        status = r"STATUS=serving; background task access-log .*, failed .*: DivisionByZero"
        eventually(lambda: any(re.match(status, word) for word in manager.receive()))


async def test_an_error_in_the_report_does_not_end_the_reports(
    manager: Manager, daemon: DaemonProcess, caplog: pytest.LogCaptureFixture
) -> None:
    calls = count()

    def describe() -> str:
        if next(calls) == 1:
            raise LookupError("as the test wants it")
        return "described"

    async with systemd.serving(daemon.socket_path, describe):
        for _ in range(2):
            await asyncio.to_thread(manager.receive_until, "STATUS=described")

    assert "as the test wants it" in caplog.text


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    systemd.notify(READY=1)


def test_a_manager_that_is_gone_is_logged_only(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_directory / "gone"))

    systemd.notify(READY=1)

    assert "READY=1" in caplog.text


def test_an_abstract_address_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(f"\0tilecache-test-{id(monkeypatch)}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@tilecache-test-{id(monkeypatch)}")

    systemd.notify(READY=1, STATUS="serving")

    assert manager.receive() == ["READY=1", "STATUS=serving"]
    manager.close()
