"""The unit under a real systemd: started, called, killed, hung, stopped, upgraded."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.systemd.service import Service, send
from tests.tiles import Block, by_key, insert, tile
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    GetServerInfoRequest,
    GetTileRequest,
    GetTileResponse,
    TileMetadata,
)
from tilecache_daemon.schema.migrator import HEAD_REVISION

WATCHDOG_S = 5
SHORT_WATCHDOG = f"[Service]\nWatchdogSec={WATCHDOG_S}\n"
HANGING_DAEMON = Path(__file__).with_name("hanging_daemon.py")
HANGING = f"""\
{SHORT_WATCHDOG}\
ExecStart=
ExecStart=/opt/tilecache/bin/python /opt/{HANGING_DAEMON.name}
"""
RARE_WRITES = "[Service]\nEnvironment=TILECACHE_ACCESS_FLUSH_INTERVAL_S=3600\n"
START_TIMEOUT_S = 10
NO_DATABASE = f"""\
[Service]
TimeoutStartSec={START_TIMEOUT_S}
Environment=DB_URL=host=/nowhere
"""
OUTAGE = "PostgreSQL does not answer; serving what is in memory"
OWN_POSTGRES = "host=/var/lib/tilecache/postgres dbname=tilecache user=tilecache"


@pytest.fixture
def client(service: Service) -> Iterator[TileCacheClient]:
    with service.client() as client:
        yield client


def get(client: TileCacheClient, block: Block, *, record_access: bool = False) -> GetTileResponse:
    request = GetTileRequest(tile=by_key(block.key()), record_access=record_access)
    return client.store.GetTile(request, timeout=60)


def is_inserted(client: TileCacheClient, message: TileMetadata) -> bool:
    """False while PostgreSQL does not answer."""
    try:
        insert(client, message)
    except CallError as error:
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


def test_it_is_ready_and_answers_a_caller_outside(
    service: Service, client: TileCacheClient
) -> None:
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)

    assert service.is_active
    assert service.status == "serving"
    assert info.schema_revision == HEAD_REVISION
    assert info.clock.trusted


def test_a_start_that_returns_has_a_daemon_that_answers(service: Service) -> None:
    service.control("restart")

    with TileCacheClient(service.machine.path(service.socket)) as client:
        assert client.is_serving()


def test_a_start_that_waits_for_its_database_reports_it_and_does_not_time_out(
    service: Service,
) -> None:
    with service.drop_in(NO_DATABASE, "stop"):
        service.machine.run("systemctl", "start", "--no-block", "tilecache-daemon")
        eventually(lambda: service.status == "waiting for the database")
        began = int(service.show("ExecMainStartTimestampMonotonic")) / 1e6
        eventually(lambda: time.monotonic() > began + START_TIMEOUT_S + 1)

        assert service.show("ActiveState") == "activating"
        assert service.status == "waiting for the database"
        assert int(service.show("ExecMainStartTimestampMonotonic")) / 1e6 == began


def test_it_runs_as_its_own_user_with_its_postgresql_beside_it(service: Service) -> None:
    users = service.machine.run("ps", "-o", "user:20=", "-C", "tilecache,postgres").split()

    assert len(users) > 1
    assert set(users) == {"tilecache"}


def test_a_killed_daemon_is_restarted_with_its_data_and_leaves_no_process(
    service: Service, client: TileCacheClient
) -> None:
    block, before = Block(), service.restart_count
    insert(client, tile(block.key()))
    old, daemon = service.processes, service.daemon

    send(signal.SIGKILL, {daemon})
    service.await_restart(before)

    assert not old & service.processes
    with service.client() as client:
        assert get(client, block).tile.key == block.key()


def test_a_hung_daemon_is_restarted_by_the_watchdog(service: Service) -> None:
    with service.drop_in(SHORT_WATCHDOG):
        before, old, seen = service.restart_count, service.processes, journal(service)

        send(signal.SIGSTOP, {service.daemon})
        service.await_restart(before)

        assert "watchdog timeout" in journal(service, seen)
        assert not old & service.processes


def test_a_daemon_whose_event_loop_alone_hangs_is_restarted_by_the_watchdog(
    service: Service,
) -> None:
    block = Block()
    service.machine.write(f"/opt/{HANGING_DAEMON.name}", HANGING_DAEMON.read_text())
    with service.drop_in(HANGING):
        with service.client() as client:
            insert(client, tile(block.key()))
        before, old, seen = service.restart_count, service.processes, journal(service)

        send(signal.SIGUSR1, {service.daemon})
        service.await_restart(before)

        assert "the event loop hangs, threads go on" in journal(service, seen)
        assert "watchdog timeout" in journal(service, seen)
        assert not old & service.processes
        with service.client() as client:
            assert get(client, block).tile.key == block.key()


def journal(service: Service, seen: str = "") -> str:
    """The unit's journal, without what was `seen` before."""
    journal = service.machine.run("journalctl", "--no-pager", "--unit=tilecache-daemon")
    return journal.lower()[len(seen) :]


def test_a_database_that_hangs_does_not_restart_the_daemon(service: Service) -> None:
    with service.drop_in(SHORT_WATCHDOG):
        before, daemon = service.restart_count, service.daemon
        postgres = service.processes - {daemon}

        send(signal.SIGSTOP, postgres)
        eventually(lambda: service.status == OUTAGE)
        outage = watchdog_notified_at_s(service)
        eventually(lambda: watchdog_notified_at_s(service) > outage + WATCHDOG_S + 1)
        assert service.status == OUTAGE
        send(signal.SIGCONT, postgres)

        eventually(lambda: service.status == "serving")
        assert (service.restart_count, service.daemon) == (before, daemon)


def watchdog_notified_at_s(service: Service) -> float:
    return int(service.show("WatchdogTimestampMonotonic")) / 1e6


def test_a_killed_postgresql_is_back_without_a_restart(
    service: Service, client: TileCacheClient
) -> None:
    before, daemon, old = service.restart_count, service.daemon, service.processes

    send(signal.SIGKILL, old - {daemon})
    eventually(lambda: service.processes - old)

    eventually(lambda: is_inserted(client, tile(Block().key())))
    assert (service.restart_count, service.daemon) == (before, daemon)


def test_a_stop_is_clean_and_writes_out_the_accesses(service: Service) -> None:
    block = Block()
    with service.drop_in(RARE_WRITES):
        with service.client() as client:
            insert(client, tile(block.key()))
            before = get(client, block, record_access=True).tile.accessed_at.ToDatetime()

        service.control("stop")

        assert service.show("Result") == "success"
        assert service.show("ExecMainStatus") == "0"
        assert not service.processes
        for socket in (service.socket, service.admin_socket):
            assert not service.machine.path(socket).exists()
        service.control("start")
        with service.client() as client:
            assert get(client, block).tile.accessed_at.ToDatetime() > before


def test_an_invalid_setting_is_named_and_not_restarted(service: Service) -> None:
    before = service.restart_count
    service.control("stop")
    seen = journal(service)
    service.machine.run("cp", "/etc/tilecache/tilecache.toml", "/tmp/")
    service.machine.write("/etc/tilecache/tilecache.toml", 'pool_max_size = "many"\n')
    try:
        failed = service.machine.attempt("systemctl", "start", "tilecache-daemon")

        assert failed.returncode != 0
        assert service.show("ActiveState") == "failed"
        assert service.restart_count == before
        assert "pool_max_size" in journal(service, seen)
    finally:
        service.machine.run("cp", "/tmp/tilecache.toml", "/etc/tilecache/")


def test_it_migrates_an_older_schema_and_its_data(
    service: Service, client: TileCacheClient
) -> None:
    block = Block()
    insert(client, tile(block.key()))
    service.machine.run(
        *("runuser", "--user=tilecache", "--", "tilecache", "migrate", "down", "--yes"),
        *("--dsn", OWN_POSTGRES, "0002_c6_tile_identity_and_lru"),
    )

    seen = journal(service)
    service.control("restart")

    with service.client() as client:
        info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)
        assert info.schema_revision == HEAD_REVISION
        assert get(client, block).tile.key == block.key()
    assert '"from_revision": "0002_c6_tile_identity_and_lru"' in journal(service, seen)


def test_only_the_group_may_call_and_only_root_may_administer(service: Service) -> None:
    machine = service.machine
    machine.run("useradd", "--system", "navigator", "--groups=tilecache")
    machine.run("useradd", "--system", "stranger")

    def may_call(user: str, socket: str) -> bool:
        status = ("runuser", f"--user={user}", "--", "tilecache", "status", "--socket", socket)
        return machine.attempt(*status).returncode == 0

    assert may_call("navigator", service.socket)
    assert may_call("root", service.admin_socket)
    assert not may_call("navigator", service.admin_socket)
    assert not may_call("stranger", service.socket)
