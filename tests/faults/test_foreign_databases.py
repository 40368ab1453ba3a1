"""Databases that an administrator has set up in another way than the daemon would."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Composed, Identifier

from tests.admin import (
    DOWNGRADE,
    STABLE_REAR,
    confirm,
    delete,
    evict,
    list_evictions,
    reevaluate,
    set_rule,
    set_sector,
    touch,
)
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.faults.daemons import Daemon
from tests.faults.servers import ForeignPostgres
from tests.tiles import (
    NOW,
    TIMEOUT_S,
    Block,
    bulk_insert,
    insert,
    sha256,
    store_row,
    tile,
    tile_uuid,
)
from tests.waiting import eventually
from tilecache.v1.tile_cache_admin_pb2 import DeleteSectorRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_REPLACED,
    InsertTileRequest,
    MarkUploadedRequest,
    UploadedTile,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER as REPLACE,
)
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub
from tilecache_daemon.cli.output import ExitCode
from tilecache_daemon.service.storage import FOLD_ROWS

INSTALL_GUIDE = Path(__file__).parents[2] / "docs" / "install.md"
PASSWORD = "secret"


def execute(dsn: str, *statements: SQL | Composed) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def refusal(directory: Path, dsn: str, **settings: Any) -> tuple[int, str]:
    """Starts a daemon that ends by itself; its exit code, and the last line of its log."""
    daemon = Daemon(directory, dsn=dsn, database_wait_s=0, **settings)
    daemon.launch()
    try:
        code = daemon.wait_until_ended()
    finally:
        daemon.close()
    assert "Traceback" not in daemon.log
    return code, daemon.log.strip().splitlines()[-1]


@contextmanager
def role(dsn: str, options: str = "") -> Iterator[tuple[str, Identifier]]:
    """A role without privileges, and the address at which it connects."""
    name = f"tilecache_{uuid4().hex}"
    execute(dsn, SQL(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {options}"))
    try:
        yield make_conninfo(dsn, user=name, password=PASSWORD), Identifier(name)
    finally:
        execute(dsn, SQL("DROP OWNED BY {0}").format(Identifier(name)), SQL(f"DROP ROLE {name}"))


@contextmanager
def database_with(dsn: str, encoding: str) -> Iterator[str]:
    name = f"tilecache_{encoding.lower()}_{uuid4().hex}"
    execute(dsn, SQL(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"))
    try:
        yield make_conninfo(dsn, dbname=name)
    finally:
        execute(dsn, SQL(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_in_another_encoding_is_refused(
    postgres_dsn: str, short_directory: Path, encoding: str
) -> None:
    with database_with(postgres_dsn, encoding) as dsn:
        code, message = refusal(short_directory, dsn)
        assert code == ExitCode.FAILED
        assert f"has the encoding {encoding}, not UTF8" in message
        migration = run_tilecache("migrate", "up", dsn=dsn)
        assert migration.returncode == ExitCode.FAILED
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT to_regclass('tiles')").fetchone() == (None,)

        create = message[message.index("CREATE DATABASE") :]
        name = conninfo_to_dict(dsn)["dbname"]
        execute(postgres_dsn, SQL(f"DROP DATABASE {name}"), SQL(create))
        assert run_tilecache("migrate", "up", dsn=dsn).returncode == ExitCode.DONE


def test_the_encoding_of_the_client_is_utf8_whatever_is_set(
    database: str, short_directory: Path
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    execute(database, SQL(f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'"))
    stored = tile(Block().key(), file_path="Zürich/🧀.jpg")
    with DaemonProcess(short_directory, dsn=f"{database} client_encoding=LATIN1") as daemon:
        insert(daemon.client, stored)
    with psycopg.connect(database, client_encoding="UTF8") as connection:
        assert connection.execute("SELECT file_path FROM tiles").fetchall() == [("Zürich/🧀.jpg",)]


def test_missing_privileges_are_named_with_the_statements_that_grant_them(
    database: str, short_directory: Path
) -> None:
    with role(database) as (dsn, name):
        execute(database, SQL("REVOKE ALL ON SCHEMA public FROM PUBLIC"))
        for _ in range(2):  # without the schema, the tables are not seen
            code, message = refusal(short_directory, dsn)
            assert code == ExitCode.FAILED
            assert "lacks privileges" in message
            execute(database, SQL(message[message.index("GRANT") :]))
        add_usage(database)
        with DaemonProcess(short_directory, dsn=dsn) as daemon:
            eventually(lambda: count_usage(database) <= FOLD_ROWS)
            use_everything(daemon)
        execute(
            database, SQL("REVOKE USAGE ON SEQUENCE tile_access_order_seq FROM {}").format(name)
        )
        code, message = refusal(short_directory, dsn)
        grant = SQL('GRANT USAGE ON SEQUENCE "tile_access_order_seq" TO {}').format(name)
        assert message.endswith(grant.as_string())


def test_the_privileges_of_the_install_guide_suffice(database: str, short_directory: Path) -> None:
    (grants,) = re.findall(r"```sql\n(GRANT.*?)```", INSTALL_GUIDE.read_text(), re.DOTALL)
    with role(database) as (dsn, name):
        execute(
            database,
            SQL("REVOKE ALL ON SCHEMA public FROM PUBLIC"),
            SQL("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC"),
            SQL(grants.replace("TO tilecache", f"TO {name.as_string()}")),
        )
        add_usage(database)
        with DaemonProcess(short_directory, dsn=dsn) as daemon:
            eventually(lambda: count_usage(database) <= FOLD_ROWS)
            use_everything(daemon)


def add_usage(dsn: str) -> None:
    """Adds more differences to the usage than the daemon leaves."""
    execute(
        dsn,
        SQL("""INSERT INTO tile_usage
               SELECT 1, 'googlemaps', 'fresh', false, 0, 0, 0 FROM generate_series(0, {})
            """).format(FOLD_ROWS),
    )


def count_usage(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM tile_usage").fetchall()
    return int(count)


def use_everything(daemon: DaemonProcess) -> None:
    """Calls whose statements need each of the privileges."""
    client, admin, block = daemon.client, daemon.admin_client, Block()
    keys = list(block.keys(4))
    insert(client, tile(keys[0]))
    (stored,) = bulk_insert(client, [tile(key) for key in keys[1:]])
    assert stored.inserted_count == 3
    newer = tile(keys[0], "newer", captured_at=NOW, file_path=f"{keys[0].x}.jpg")
    assert insert(client, newer, REPLACE).outcome == INSERT_OUTCOME_REPLACED
    mark = MarkUploadedRequest(
        tiles=[UploadedTile(tile_uuid=tile_uuid(keys[0]), content_sha256=sha256("newer"))]
    )
    client.store.MarkUploaded(mark, timeout=TIMEOUT_S)
    touch(client, *keys)
    set_rule(admin, STABLE_REAR, 12, DOWNGRADE)
    for north in (80, 81):
        set_sector(admin, "north", STABLE_REAR, (-80, -170, north, 170))
    reevaluate(admin)
    admin.admin.DeleteSector(DeleteSectorRequest(name="north"), timeout=TIMEOUT_S)
    assert evict(admin, free_bytes=1).summary.evicted_count == 1
    assert delete(admin, region=block.region, zooms=[block.zoom]).summary.deleted_count == 3
    listed = [entry.eviction_id for entry in list_evictions(admin)]
    assert all(confirm(admin, listed))
    assert daemon.stop() == 0, "accesses are written"
    assert "permission denied" not in daemon.log


@pytest.mark.parametrize(
    "limit", ["max_connections", "the role's CONNECTION LIMIT", "the database's CONNECTION LIMIT"]
)
def test_a_connection_limit_below_what_is_needed_is_named(
    foreign: ForeignPostgres, short_directory: Path, limit: str
) -> None:
    if limit == "max_connections":
        foreign.settings |= {"max_connections": "12"}  # of which three are reserved
        foreign.stop()
        foreign.start()
    if "database" in limit:
        database = Identifier(str(conninfo_to_dict(foreign.dsn)["dbname"]))
        execute(foreign.dsn, SQL("ALTER DATABASE {} CONNECTION LIMIT 9").format(database))
    assert run_tilecache("migrate", "up", dsn=foreign.dsn).returncode == 0
    with role(foreign.dsn, "CONNECTION LIMIT 9" if "role" in limit else "") as (dsn, name):
        execute(foreign.dsn, SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(name))
        execute(foreign.dsn, SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {}").format(name))
        code, message = refusal(short_directory, dsn)
        assert code == ExitCode.FAILED
        assert (
            f"needs 10 connections (pool_max_size and 2 more), but {limit} leaves it 9" in message
        )
        with DaemonProcess(short_directory, dsn=dsn, pool_max_size=7) as daemon:
            insert(daemon.client, tile(Block().key()))


def test_a_standby_is_named_and_may_be_promoted(
    foreign: ForeignPostgres, short_directory: Path
) -> None:
    assert run_tilecache("migrate", "up", dsn=foreign.dsn).returncode == 0
    foreign.stop_for_a_while()
    (foreign.data / "standby.signal").touch()
    shutil.chown(foreign.data / "standby.signal", foreign.data.owner(), foreign.data.group())
    foreign.start_again()
    code, message = refusal(short_directory, foreign.dsn)
    assert code == ExitCode.UNREACHABLE
    assert "is a standby, which accepts no writes: name the primary in dsn" in message
    daemon = Daemon(short_directory, dsn=foreign.dsn)
    daemon.launch()
    try:
        eventually(lambda: "waiting for the database" in daemon.log)
        execute(foreign.dsn, SQL("SELECT pg_promote()"))
        daemon.wait_until_ready()
    finally:
        daemon.close()


def test_a_role_that_is_set_read_only_is_named(database: str, short_directory: Path) -> None:
    name = conninfo_to_dict(database)["dbname"]
    execute(database, SQL(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    code, message = refusal(short_directory, database)
    assert code == ExitCode.FAILED
    assert "default_transaction_read_only is on" in message


@contextmanager
def pgbouncer(
    directory: Path, server: ForeignPostgres, pool_mode: str, **settings: int
) -> Iterator[str]:
    """The address of a PgBouncer before a server, whose user it runs as."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    address = conninfo_to_dict(server.dsn)
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n{address['dbname']} = host={address['host']} port={address['port']} "
        f"user={address['user']}\n"
        f"[pgbouncer]\npool_mode = {pool_mode}\nlisten_port = 6432\nlisten_addr =\n"
        f"unix_socket_dir = {directory}\nauth_type = any\n"
        f"user = {server.data.owner() if os.getuid() == 0 else ''}\n"
        + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    directory.chmod(0o777)  # for PgBouncer's unprivileged user
    process = subprocess.Popen([program, directory / "pgbouncer.ini"])
    try:
        eventually((directory / ".s.PGSQL.6432").exists)
        yield make_conninfo(server.dsn, host=str(directory), port=6432)
    finally:
        process.terminate()
        process.wait(60)


def test_a_pooler_that_shares_sessions_is_named(
    foreign: ForeignPostgres, short_directory: Path, open_directory: Path
) -> None:
    with pgbouncer(open_directory, foreign, "transaction") as dsn:
        code, message = refusal(short_directory, dsn)
        assert code == ExitCode.FAILED
        assert "PgBouncer with pool_mode=transaction" in message


def test_a_pooler_that_does_not_share_sessions_works(
    foreign: ForeignPostgres, short_directory: Path, open_directory: Path
) -> None:
    with (
        pgbouncer(open_directory, foreign, "session", default_pool_size=9) as dsn,
        DaemonProcess(short_directory, dsn=dsn, pool_max_size=7) as daemon,
    ):
        use_everything(daemon)


@pytest.mark.parametrize(
    ("limit", "given"), [("default_pool_size", 9), ("default_pool_size", 1), ("max_client_conn", 9)]
)
def test_a_pooler_that_gives_too_few_connections_is_named(
    foreign: ForeignPostgres, short_directory: Path, open_directory: Path, limit: str, given: int
) -> None:
    assert run_tilecache("migrate", "up", dsn=foreign.dsn).returncode == 0
    with pgbouncer(open_directory, foreign, "session", **{limit: given}) as dsn:
        code, message = refusal(short_directory, dsn)
        assert code == ExitCode.FAILED
        assert "needs 10 connections (pool_max_size and 2 more)" in message
        assert f"pooler that dsn leads to gives it {given}: raise its limits" in message


FOREIGN_SETTINGS = {
    "timezone": "Asia/Tokyo",
    "datestyle": "German",
    "default_transaction_isolation": "repeatable read",
    "idle_session_timeout": "300ms",
    "idle_in_transaction_session_timeout": "1ms",
    "statement_timeout": "150ms",
    "lock_timeout": "150ms",
}


def test_timeouts_and_formats_that_are_set_for_the_role_do_not_apply(
    database: str, short_directory: Path
) -> None:
    with role(database, "SUPERUSER") as (dsn, name):
        for setting, value in FOREIGN_SETTINGS.items():
            execute(database, SQL(f"ALTER ROLE {{}} SET {setting} = '{value}'").format(name))
        with DaemonProcess(short_directory, dsn=dsn) as daemon:
            eventually(lambda: longest_idle_s(database) > 1.0)
            wait_for_lock(daemon, database)
            delete_used_in_9999(daemon, database)
            use_everything(daemon)
            assert "database_lost" not in daemon.log


def wait_for_lock(daemon: DaemonProcess, dsn: str) -> None:
    """A write waits for a lock for longer than the short timeouts, and succeeds."""
    waiting = """SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                 AND application_name = 'tilecache' AND query_start < now() - interval '300 ms'"""
    key = Block().key()
    with ThreadPoolExecutor() as threads, psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE tiles IN SHARE MODE")
        write = threads.submit(insert, daemon.client, tile(key))
        with psycopg.connect(dsn, autocommit=True) as observer:
            eventually(lambda: write.done() or observer.execute(waiting).fetchone() == (1,))
        other.rollback()
        write.result()
    delete(daemon.admin_client, tile_uuids=[tile_uuid(key)])


def delete_used_in_9999(daemon: DaemonProcess, dsn: str) -> None:
    """A tile that was used on the last day of the calendar is listed with the right time."""
    used_at, key = datetime(9999, 12, 31, 20, tzinfo=timezone.utc), Block().key()
    with psycopg.connect(dsn, autocommit=True) as sql:
        store_row(sql, key, accessed_at=used_at)
    (listed,) = delete(daemon.admin_client, tile_uuids=[tile_uuid(key)]).tiles
    assert listed.accessed_at.ToDatetime(timezone.utc) == used_at


def test_idle_connections_that_are_closed_cost_no_call(
    database: str, short_directory: Path
) -> None:
    block = Block()
    with (
        DaemonProcess(short_directory, dsn=database, pool_min_size=8) as daemon,
        grpc.insecure_channel(
            f"unix:{daemon.socket_path}", options=[("grpc.enable_retries", 0)]
        ) as channel,
    ):
        store = TileMetadataStoreStub(channel)
        for key in block.keys(5):
            eventually(lambda: count_idle_sessions(database) >= 8)
            end_sessions(database)
            store.InsertTile(InsertTileRequest(tile=tile(key)), timeout=TIMEOUT_S)
        with psycopg.connect(database) as connection:
            assert connection.execute("SELECT count(*) FROM tiles").fetchone() == (5,)
        assert "database_lost" not in daemon.log


def longest_idle_s(dsn: str) -> float:
    """How long the session of the pool that waits longest has been idle."""
    query = """SELECT extract(epoch FROM now() - min(state_change))::float8 FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'tilecache'"""
    with psycopg.connect(dsn) as connection:
        ((idle_s,),) = connection.execute(query).fetchall()
    return float(idle_s or 0)


def count_idle_sessions(dsn: str) -> int:
    """How many sessions of the pool are prepared and idle."""
    query = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name = 'tilecache' AND state = 'idle'
               AND query <> '' AND query !~ 'SET |set_config'"""
    with psycopg.connect(dsn) as connection:
        ((count,),) = connection.execute(query).fetchall()
    return int(count)


def end_sessions(dsn: str) -> None:
    """Ends all sessions of the daemon, and waits for their end."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'tilecache%'"""
        )
