"""`tilecache status`."""

import json
import socket
from pathlib import Path

import psycopg
import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.waiting import eventually
from tilecache_daemon import __version__
from tilecache_daemon.schema.migrator import HEAD_REVISION


def test_one_screen_shows_the_state(shared_daemon: DaemonProcess) -> None:
    shown = run_tilecache("status", "--socket", shared_daemon.socket_path)
    assert shown.returncode == 0
    assert shown.stderr == ""
    for fact in (
        *("ready, ", "available", "trusted, ", __version__, HEAD_REVISION),
        *(
            "5b8d0c2e-1a4f-4b3a-8c9d-e7f6a3b2c1d0",
            "10,000 tiles per batch",
            "a crash loses at most",
        ),
    ):
        assert fact in shown.stdout


def test_json_has_the_state(shared_daemon: DaemonProcess) -> None:
    shown = run_tilecache("status", "--json", "--socket", shared_daemon.socket_path)
    assert shown.returncode == 0
    state = json.loads(shown.stdout)
    assert state["ready"] is True
    assert state["schema_revision"] == HEAD_REVISION
    assert state["limits"]["max_batch_tiles"] == 10_000
    assert state["clock"]["trusted"] is True


def test_the_socket_may_be_named_in_the_environment(shared_daemon: DaemonProcess) -> None:
    assert run_tilecache("status", socket_path=shared_daemon.socket_path).returncode == 0


def test_a_daemon_that_runs_but_is_not_ready_exits_with_1(
    daemon: DaemonProcess, database: str, postgres_dsn: str
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            eventually(lambda: not daemon.client.is_serving())
            shown = run_tilecache("status", "--socket", daemon.socket_path)
            assert shown.returncode == 1
            assert "NOT ready" in shown.stdout
            assert "NOT available" in shown.stdout
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    eventually(daemon.client.is_serving)


@pytest.mark.parametrize("command", [["status"], ["get", "18", "1", "1"]])
def test_without_a_socket_exits_with_3_and_names_serve(
    short_directory: Path, command: list[str]
) -> None:
    path = short_directory / "none.sock"
    refused = run_tilecache(*command, "--socket", path)
    assert refused.returncode == 3
    assert f"{path}: no such socket" in refused.stderr
    assert "tilecache serve" in refused.stderr


def test_a_stale_socket_exits_with_3(short_directory: Path) -> None:
    path = short_directory / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    refused = run_tilecache("status", "--socket", path)
    assert refused.returncode == 3
    assert str(path) in refused.stderr
    assert "Traceback" not in refused.stderr
