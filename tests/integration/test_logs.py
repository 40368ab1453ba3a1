"""The log: its format, and the secrets that are never in it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.tiles import TIMEOUT_S, Block, by_key, insert, tile
from tests.waiting import eventually
from tilecache.errors import CallError
from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
from tilecache_daemon.schema.migrator import HEAD_REVISION

SECRET = "hunter2"
CALLS = 20
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


def log(statement: str, log_format: str = "json", level: str = "info") -> str:
    """The log output of a statement, run in its own process."""
    program = f"""
import logging, structlog, warnings
from tilecache_daemon.logs import configure_logging
configure_logging({level!r}, {log_format!r})
def call(password):
    raise ValueError("what went wrong")
{statement}
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert not finished.stdout
    return finished.stderr


def log_json(statement: str, **options: str) -> dict[str, Any]:
    (line,) = log(statement, **options).splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


DAEMON = "structlog.get_logger('tilecache_daemon.store')"
LIBRARY = "logging.getLogger('library')"


def test_an_event_has_a_kind_and_facts() -> None:
    line = log_json(f"{DAEMON}.warning('accesses_not_written', waiting=3)")
    assert (line["kind"], line["kv"]) == ("accesses_not_written", {"waiting": 3})
    assert (line["level"], line["logger"]) == ("warning", "tilecache_daemon.store")
    assert line["timestamp"].endswith("Z")


def test_a_record_without_kind_is_a_message() -> None:
    line = log_json(f"{LIBRARY}.warning('%s of %s', 1, 2)")
    assert (line["kind"], line["kv"]) == ("message", {"text": "1 of 2"})


def test_a_record_may_have_a_kind_and_facts() -> None:
    line = log_json(f"{LIBRARY}.info('x', extra={{'kind': 'y', 'kv': {{'z': 1}}}})")
    assert (line["kind"], line["kv"]) == ("y", {"z": 1})


def test_the_text_format_shows_the_message() -> None:
    line = log(f"{LIBRARY}.info('x is y', extra={{'kind': 'k', 'kv': {{'z': 1}}}})", "text")
    assert "x is y" in line
    assert "kv" not in line


def test_python_warnings_are_logged() -> None:
    assert "old" in log_json("warnings.warn('old', UserWarning)")["kv"]["text"]


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", ["ours"]), ("info", []), ("warning", []), ("error", [])]
)
def test_the_debug_level_applies_to_the_daemon_only(level: str, shown: list[str]) -> None:
    lines = log(f"{DAEMON}.debug('ours'); {LIBRARY}.debug('theirs')", level=level).splitlines()
    assert [json.loads(line)["kind"] for line in lines] == shown


FAILING = f"""
try:
    call({SECRET!r}[:7])
except ValueError:
    structlog.get_logger('tilecache_daemon.store').exception('failed')
"""


def test_an_exception_is_part_of_its_line() -> None:
    line = log_json(FAILING)
    assert line["kind"] == "failed"
    assert "ValueError: what went wrong" in line["exception"]


def test_an_error_that_ends_a_thread_is_a_line_too() -> None:
    line = log_json(
        f"import threading; threading.Thread(name='t', target=call, args=['{SECRET}']).start()"
    )
    assert (line["kind"], line["kv"], line["level"]) == ("thread_failed", {"thread": "t"}, "error")
    assert "what went wrong" in line["exception"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exception_shows_no_variables(log_format: str) -> None:
    hidden = "password = ''.join(['hun', 'ter', '2'])\n"
    text = log(hidden + FAILING.replace(f"{SECRET!r}[:7]", "password"), log_format)
    assert "what went wrong" in text
    assert SECRET not in text


def lines_of(daemon: DaemonProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert all(line.keys() >= {"kind", "kv", "level", "timestamp", "logger"} for line in lines)
    return lines


def call_often(daemon: DaemonProcess, block: Block) -> None:
    insert(daemon.client, tile(block.key()))
    for column in range(CALLS):
        request = GetTileRequest(tile=by_key(block.key(column)), record_access=True)
        if column == 0:
            daemon.client.store.GetTile(request, timeout=TIMEOUT_S)
        else:
            with pytest.raises(CallError):
                daemon.client.store.GetTile(request, timeout=TIMEOUT_S)


def test_each_line_of_a_daemon_has_a_kind_and_facts(daemon: DaemonProcess) -> None:
    daemon.stop()
    facts = {line["kind"]: line["kv"] for line in lines_of(daemon)}
    assert facts.keys() >= {"schema_at_head", "serving", "stopping", "stopped"}
    assert facts["schema_at_head"]["namespace_uuid"] == str(TILE_NAMESPACE_UUID)
    assert facts["schema_at_head"]["to_revision"] == HEAD_REVISION


def test_calls_are_not_logged(daemon: DaemonProcess, block: Block) -> None:
    def kinds() -> list[str]:
        return [line["kind"] for line in lines_of(daemon) if line["kind"] != "labels_up_to_date"]

    before = kinds()
    call_often(daemon, block)
    assert kinds() == before


def test_at_the_debug_level_each_call_is_a_line(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, log_level="debug") as daemon:
        call_often(daemon, block)
        daemon.stop()
        calls = [line["kv"] for line in lines_of(daemon) if line["kind"] == "call"]
    codes = [call["code"] for call in calls if call["method"] == "GetTile"]
    assert codes == ["OK"] + ["NOT_FOUND"] * (CALLS - 1)


@pytest.fixture
def guarded_postgres(open_directory: Path) -> Iterator[EmbeddedPostgres]:
    """A server that requires a password from every user except its owner."""
    rules = open_directory / "pg_hba.conf"
    rules.write_text("local all tilecache trust\nlocal all all scram-sha-256\n")
    server = EmbeddedPostgres(open_directory / "state", settings={"hba_file": str(rules)})
    server.start()
    try:
        with psycopg.connect(server.dsn, autocommit=True) as owner:
            owner.execute("CREATE ROLE pilot LOGIN SUPERUSER PASSWORD 'right'")
        yield server
    finally:
        server.stop()


def test_a_wrong_password_is_reported_but_not_shown(
    guarded_postgres: EmbeddedPostgres, short_directory: Path
) -> None:
    finished = run_tilecache(
        "serve",
        dsn=make_conninfo(guarded_postgres.dsn, user="pilot", password=SECRET),
        socket_path=short_directory / "s",
        admin_socket_path=short_directory / "a",
        database_wait_s=0,
        log_level="debug",
    )
    assert finished.returncode == EXIT_UNREACHABLE
    assert "password authentication failed" in finished.stderr
    assert SECRET not in finished.stdout + finished.stderr


def test_a_changed_password_is_reported_but_not_shown(
    guarded_postgres: EmbeddedPostgres, short_directory: Path
) -> None:
    dsn = make_conninfo(guarded_postgres.dsn, user="pilot", password=SECRET)
    set_password = "ALTER ROLE pilot PASSWORD '{}'"
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pilot'"
    with psycopg.connect(guarded_postgres.dsn, autocommit=True) as owner:
        owner.execute(set_password.format(SECRET))
        with DaemonProcess(short_directory, dsn=dsn, log_level="debug") as daemon:
            owner.execute(set_password.format("another"))
            owner.execute(cut)
            eventually(lambda: not daemon.client.is_serving())
            eventually(lambda: "password authentication failed" in daemon.log)
            owner.execute(set_password.format(SECRET))
            daemon.client.wait_until_ready(TIMEOUT_S)
            daemon.stop()
            assert SECRET not in daemon.log


def test_the_settings_are_printed_without_the_password() -> None:
    printed = run_tilecache("serve", "--print-config", dsn=f"host=db password={SECRET}")
    assert "host=db" in json.loads(printed.stdout)["dsn"]
    assert SECRET not in printed.stdout + printed.stderr


def test_a_password_on_the_command_line_causes_a_warning(short_directory: Path) -> None:
    finished = run_tilecache(
        "serve",
        "--dsn",
        f"host={short_directory} password={SECRET}",
        socket_path=short_directory / "s",
        admin_socket_path=short_directory / "a",
        database_wait_s=0,
    )
    assert "password_in_process_list" in finished.stderr
    assert SECRET not in finished.stderr


@pytest.mark.parametrize(
    "dsn", [f"host=db password={SECRET}", f"postgresql://pilot:{SECRET}@db/tiles"]
)
def test_a_world_readable_file_with_a_password_is_refused(tmp_path: Path, dsn: str) -> None:
    file = tmp_path / "tilecache.toml"
    file.write_text(f'dsn = "{dsn}"\n')
    file.chmod(0o644)
    refused = run_tilecache("serve", "--config", file, "--print-config")
    assert refused.returncode == EXIT_USAGE
    assert f"{file}: dsn contains a password" in refused.stderr
    assert SECRET not in refused.stderr
    file.chmod(0o640)
    assert run_tilecache("serve", "--config", file, "--print-config").returncode == 0


def test_a_file_with_a_passfile_may_be_world_readable(tmp_path: Path) -> None:
    file = tmp_path / "tilecache.toml"
    file.write_text('dsn = "host=db passfile=/etc/tilecache/pgpass"\n')
    file.chmod(0o644)
    assert run_tilecache("serve", "--config", file, "--print-config").returncode == 0


def test_the_password_of_a_passfile_is_used(
    guarded_postgres: EmbeddedPostgres, short_directory: Path
) -> None:
    passfile = short_directory / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text("*:*:*:pilot:right\n")
    dsn = make_conninfo(guarded_postgres.dsn, user="pilot", passfile=str(passfile))
    with DaemonProcess(short_directory, dsn=dsn) as daemon:
        assert daemon.client.is_serving()
