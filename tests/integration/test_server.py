"""The daemon's start, its sockets, health and reflection, and graceful shutdown."""

import grp
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from psycopg.conninfo import make_conninfo

from tests.daemon_process import TILECACHE, DaemonProcess, daemon_environment, run_tilecache
from tests.tiles import Block, by_key, insert, store_row, tile, waiting_for_locks
from tests.waiting import eventually
from tilecache.client import ADMIN_SERVICE, STORE_SERVICE, TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest

UNREACHABLE = "host=/nonexistent dbname=tiles user=operator password=hunter2"


def serve(directory: Path, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Runs a daemon that is expected to fail, to its end."""
    given = {
        "socket_path": directory / "tilecache.sock",
        "admin_socket_path": directory / "admin.sock",
        "state_directory": directory / "state",
    } | settings
    return run_tilecache("serve", **given)


def test_health_covers_each_service_and_the_server(
    shared_daemon: DaemonProcess,
) -> None:
    assert shared_daemon.client.is_serving(STORE_SERVICE)
    assert shared_daemon.client.is_serving("")
    with TileCacheClient(shared_daemon.admin_socket_path) as admin:
        assert admin.is_serving(ADMIN_SERVICE)
        assert admin.is_serving("")
    with pytest.raises(CallError) as caught:
        shared_daemon.client.is_serving("tilecache.v1.NoService")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


@contextmanager
def reflection(socket_path: Path) -> Iterator[ProtoReflectionDescriptorDatabase]:
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{socket_path}", options=options) as channel:
        yield ProtoReflectionDescriptorDatabase(channel)


def test_reflection_covers_services_and_messages(shared_daemon: DaemonProcess) -> None:
    with reflection(shared_daemon.socket_path) as reflected:
        services = set(reflected.get_services())
        assert {STORE_SERVICE, "grpc.health.v1.Health"} <= services
        file = reflected.FindFileContainingSymbol(f"{STORE_SERVICE}")
        assert file.package == "tilecache.v1"
        assert "TileMetadata" in [message.name for message in file.message_type]
    with reflection(shared_daemon.admin_socket_path) as reflected:
        assert {STORE_SERVICE, ADMIN_SERVICE} <= set(reflected.get_services())


def test_a_second_daemon_does_not_take_a_socket_in_use(
    daemon: DaemonProcess, database: str
) -> None:
    before = daemon.socket_path.stat().st_ino
    second = serve(daemon.socket_path.parent, dsn=database)
    assert second.returncode == 5
    assert f"{daemon.socket_path}: in use by another daemon" in second.stderr
    assert daemon.socket_path.stat().st_ino == before
    assert daemon.client.is_serving()


def test_the_socket_of_a_killed_daemon_is_taken_over(daemon: DaemonProcess) -> None:
    daemon.kill()
    assert daemon.socket_path.is_socket()
    daemon.start()
    assert daemon.client.is_serving()


def test_a_stale_socket_is_taken_over(database: str, short_directory: Path) -> None:
    path = short_directory / "tilecache.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with DaemonProcess(short_directory, dsn=database) as process:
        assert process.client.is_serving()


def test_the_socket_of_another_program_is_not_replaced(
    database: str, short_directory: Path
) -> None:
    path = short_directory / "tilecache.sock"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        refused = serve(short_directory, dsn=database)
        assert refused.returncode == 5
        assert f"{path}: in use by another program" in refused.stderr
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))


def create_file(path: Path) -> None:
    path.write_text("precious")


def create_link(path: Path) -> None:
    path.with_name("target").write_text("precious")
    path.symlink_to("target")


@pytest.mark.parametrize("create", [create_file, Path.mkdir, create_link])
@pytest.mark.parametrize("name", ["tilecache.sock", "admin.sock"])
def test_a_file_that_is_not_a_socket_is_not_replaced(
    database: str, short_directory: Path, create: Any, name: str
) -> None:
    path = short_directory / name
    create(path)
    before = path.lstat()
    refused = serve(short_directory, dsn=database)
    assert refused.returncode == 5
    assert f"{path}: exists and is not a socket" in refused.stderr
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (
        *(before.st_ino, before.st_mode, before.st_size),
    )


def test_an_impossible_path_is_reported(database: str, short_directory: Path) -> None:
    create_file(short_directory / "file")
    path = short_directory / "file" / "tilecache.sock"
    refused = serve(short_directory, dsn=database, socket_path=path)
    assert refused.returncode == 5
    assert str(path) in refused.stderr


def own_group() -> grp.struct_group:
    """A group that this user can assign, if possible not the effective one."""
    ids = [group.gr_gid for group in grp.getgrall()] if os.geteuid() == 0 else os.getgroups()
    return grp.getgrgid(next((gid for gid in ids if gid != os.getegid()), os.getegid()))


def test_sockets_have_the_configured_mode_and_group(database: str, short_directory: Path) -> None:
    group = own_group()
    settings = {"socket_mode": "0606", "socket_group": group.gr_name, "admin_socket_mode": "0640"}
    with DaemonProcess(short_directory, dsn=database, **settings) as process:
        found = process.socket_path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o606, group.gr_gid)
        assert stat.S_IMODE(process.admin_socket_path.stat().st_mode) == 0o640


def test_by_default_the_group_can_connect_and_only_the_owner_can_administer(
    shared_daemon: DaemonProcess,
) -> None:
    assert stat.S_IMODE(shared_daemon.socket_path.stat().st_mode) == 0o660
    assert stat.S_IMODE(shared_daemon.admin_socket_path.stat().st_mode) == 0o600


def test_an_unknown_group_is_reported(database: str, short_directory: Path) -> None:
    refused = serve(short_directory, dsn=database, socket_group="no-such-group")
    assert refused.returncode == 2
    assert "no-such-group" in refused.stderr
    assert not (short_directory / "tilecache.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_shutdown_exits_with_0_and_removes_the_sockets(
    daemon: DaemonProcess, number: signal.Signals
) -> None:
    assert daemon.signal(number) == 0
    assert not daemon.socket_path.exists()
    assert not daemon.admin_socket_path.exists()
    assert "Traceback" not in daemon.log
    assert daemon.start().client.is_serving()


def test_a_graceful_shutdown_drains_calls_in_progress(
    daemon: DaemonProcess, database: str, block: Block
) -> None:
    with psycopg.connect(database) as other, ThreadPoolExecutor(2) as threads:
        store_row(other, block.key())
        answer = threads.submit(insert, daemon.client, tile(block.key()))
        eventually(lambda: waiting_for_locks(database))
        exit_code = threads.submit(daemon.stop)
        eventually(lambda: "stopping" in daemon.log)
        other.rollback()
        assert answer.result().tile.key == block.key()
        assert exit_code.result() == 0


def test_a_health_watch_reports_the_shutdown(
    daemon: DaemonProcess, database: str, block: Block
) -> None:
    options = [("grpc.default_authority", "localhost")]
    with (
        psycopg.connect(database) as other,
        ThreadPoolExecutor(2) as threads,
        grpc.insecure_channel(f"unix:{daemon.socket_path}", options=options) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=STORE_SERVICE), timeout=60
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        store_row(other, block.key())
        answer = threads.submit(insert, daemon.client, tile(block.key()))
        eventually(lambda: waiting_for_locks(database))
        exit_code = threads.submit(daemon.stop)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        other.rollback()
        answer.result()
        watch.cancel()
        assert exit_code.result() == 0


@contextmanager
def starting(directory: Path, **settings: object) -> Iterator["subprocess.Popen[str]"]:
    """A daemon that is starting."""
    environment = daemon_environment(
        socket_path=directory / "tilecache.sock",
        admin_socket_path=directory / "admin.sock",
        state_directory=directory / "state",
        **settings,
    )
    with subprocess.Popen(
        [TILECACHE, "serve"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_line(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stderr is not None
    assert any(text in line for line in process.stderr)


@pytest.mark.parametrize(
    ("settings", "step"),
    [({}, "starting PostgreSQL"), ({"dsn": UNREACHABLE}, "waiting for the database")],
    ids=["embedded", "unreachable"],
)
def test_a_daemon_can_be_stopped_while_it_starts(
    open_directory: Path, settings: dict[str, object], step: str
) -> None:
    with starting(open_directory, **settings) as process:
        await_line(process, step)
        process.terminate()
        assert process.wait(60) == 0
    assert not (open_directory / "tilecache.sock").exists()
    assert not (open_directory / "state/postgres/data/postmaster.pid").exists()


def test_a_stopped_start_can_be_repeated(open_directory: Path) -> None:
    with starting(open_directory) as process:
        await_line(process, "starting PostgreSQL")
        process.terminate()
        process.wait(60)
    with DaemonProcess(open_directory) as daemon:
        assert daemon.client.is_serving()
        assert daemon.stop() == 0


@pytest.mark.parametrize("linked", ["state", "state/postgres"])
def test_the_state_directory_may_be_a_link_to_another_disk(
    open_directory: Path, short_directory: Path, linked: str
) -> None:
    short_directory.chmod(0o755)
    link = open_directory / linked
    link.parent.mkdir(mode=0o755, exist_ok=True)
    link.symlink_to(short_directory)
    with DaemonProcess(open_directory) as daemon:
        assert daemon.client.is_serving()
        assert daemon.stop() == 0
    assert any(short_directory.rglob("PG_VERSION"))


def test_a_state_directory_that_cannot_be_made_is_reported(short_directory: Path) -> None:
    (short_directory / "state").symlink_to("/nonexistent/directory")
    refused = serve(short_directory)
    assert refused.returncode == 5
    assert f"PostgreSQL cannot be started in {short_directory}/state" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_start_fails_after_a_bounded_wait_for_the_database(
    short_directory: Path,
) -> None:
    refused = serve(short_directory, dsn=UNREACHABLE, database_wait_s=0.6)
    assert refused.returncode == 3
    assert "does not answer" in refused.stderr
    assert "hunter2" not in refused.stderr
    assert not (short_directory / "tilecache.sock").exists()


@pytest.mark.parametrize("number", ["many", "1"])
def test_a_start_fails_with_an_invalid_setting(short_directory: Path, number: str) -> None:
    refused = serve(short_directory, pool_max_size=number)
    assert refused.returncode == 2
    assert "pool_max_size" in refused.stderr
    assert not list(short_directory.iterdir())


def test_a_start_fails_if_the_identity_proof_fails(short_directory: Path) -> None:
    broken = (
        "from tilecache import identity; from tilecache_daemon.cli import main;"
        "scheme = type(identity._SCHEME)(); scheme.CopyFrom(identity._SCHEME);"
        "scheme.tile_vectors[0].uuid = scheme.no_flight_uuid; identity._SCHEME = scheme;"
        "main(['serve'])"
    )
    refused = subprocess.run(
        [sys.executable, "-c", broken],
        env=daemon_environment(
            socket_path=short_directory / "tilecache.sock",
            admin_socket_path=short_directory / "admin.sock",
            dsn=UNREACHABLE,
            database_wait_s=0,
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 5
    assert "is locked" in refused.stderr
    assert not (short_directory / "tilecache.sock").exists()


def test_the_options_of_the_database_address_are_kept(
    empty_database: str, short_directory: Path, block: Block
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
    options = "-c search_path=elsewhere -c timezone=America/New_York"
    dsn = make_conninfo(empty_database, options=options)
    with DaemonProcess(short_directory, dsn=dsn) as process:
        insert(
            process.client, tile(block.key(), captured_at=datetime(1, 1, 1, tzinfo=timezone.utc))
        )
        request = GetTileRequest(tile=by_key(block.key()))
        assert process.client.store.GetTile(request, timeout=60).tile.key == block.key()
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM elsewhere.tiles").fetchone() == (1,)
