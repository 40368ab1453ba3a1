"""A daemon's own PostgreSQL has settings that fit the machine, or those of the configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.faults.servers import embedded_dsn
from tilecache_daemon.cli.output import ExitCode
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
from tilecache_daemon.postgres.memory import available_memory_bytes, memory_settings


def test_the_server_takes_them(open_directory: Path) -> None:
    given = {"shared_buffers": "64MB", "checkpoint_timeout": "20min"}
    with DaemonProcess(open_directory, postgres_settings=json.dumps(given)) as daemon:
        expected = memory_settings(available_memory_bytes()) | given
        with psycopg.connect(embedded_dsn(open_directory / "state")) as connection:
            assert_in_force(connection, expected)
        daemon.stop()


@pytest.mark.parametrize("memory_gib", [4, 64])
def test_a_server_starts_with_the_settings_of_another_machine(
    open_directory: Path, memory_gib: int
) -> None:
    expected = memory_settings(memory_gib * 1024**3)
    server = EmbeddedPostgres(open_directory, settings=expected)
    try:
        with psycopg.connect(server.start()) as connection:
            assert_in_force(connection, expected)
    finally:
        server.stop()


def test_another_setting_is_refused_by_name(open_directory: Path) -> None:
    refused = run_tilecache(
        "serve", state_directory=open_directory, postgres_settings='{"fsync": "off"}'
    )
    assert refused.returncode == 2
    assert "postgres_settings" in refused.stderr
    assert "fsync" in refused.stderr


def assert_in_force(connection: psycopg.Connection[Any], expected: Mapping[str, str]) -> None:
    for name, value in expected.items():
        ((same,),) = connection.execute(
            "SELECT pg_size_bytes(current_setting(%(name)s)) = pg_size_bytes(%(value)s)"
            if value.endswith("MB")
            else "SELECT current_setting(%(name)s)::interval = %(value)s::interval",
            {"name": name, "value": value},
        ).fetchall()
        assert same, name


def test_a_value_that_postgresql_refuses_is_named(open_directory: Path) -> None:
    refused = run_tilecache(
        "serve",
        socket_path=open_directory / "tilecache.sock",
        state_directory=open_directory / "state",
        postgres_settings='{"work_mem": "lots"}',
    )
    assert refused.returncode == ExitCode.FAILED
    assert 'invalid value for parameter "work_mem": "lots"' in refused.stderr
