"""Fixtures of all tests: a real PostgreSQL server, and a separate database for each test.

The server is the one at `DB_URL`, otherwise an embedded one in memory.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Composed, Identifier

from tests.daemon_process import DaemonProcess
from tilecache_daemon.postgres.embedded import EmbeddedPostgres

UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A new directory in memory that all users can access.

    If pytest runs as root, `tmp_path` is closed to the server's unprivileged user.
    """
    with _memory_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """The address of a PostgreSQL server, with a role that can create databases."""
    if address := os.environ.get("DB_URL"):
        yield address
        return
    with _memory_directory() as directory:
        server = EmbeddedPostgres(directory, settings=UNSAFE_BUT_FAST)
        try:
            yield server.start()
        finally:
            server.stop()


@pytest.fixture
def empty_database(postgres_dsn: str) -> Iterator[str]:
    """The address of a database without a schema, dropped afterwards."""
    with _database(postgres_dsn, SQL("")) as dsn:
        yield dsn


@pytest.fixture
def database(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """The address of a database with the newest schema, dropped afterwards."""
    with _newest_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
def other_database(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """As `database`, for a second daemon."""
    with _newest_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def shared_database(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """As `database`, shared by the tests of a module."""
    with _newest_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def second_database(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """As `shared_database`, another one."""
    with _newest_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def template_database(postgres_dsn: str) -> Iterator[str]:
    """The name of a template database with the newest schema."""
    from tilecache_daemon.config import Config
    from tilecache_daemon.schema.migrator import apply_migrations

    with _database(postgres_dsn, SQL("")) as dsn:
        apply_migrations(Config(dsn=dsn))
        with psycopg.connect(dsn) as connection:
            name = connection.info.dbname
        yield name


@contextmanager
def _memory_directory() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="tilecache-", dir=memory if memory.is_dir() else None))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def _newest_database(postgres_dsn: str, template_database: str) -> Iterator[str]:
    with psycopg.connect(postgres_dsn) as admin:
        # The default since version 15 writes the copy to the write-ahead log, which is slower.
        strategy = SQL(" STRATEGY file_copy" if admin.info.server_version >= 150000 else "")
    template = SQL("TEMPLATE {}").format(Identifier(template_database))
    with _database(postgres_dsn, template + strategy) as dsn:
        yield dsn


@contextmanager
def _database(postgres_dsn: str, options: SQL | Composed) -> Iterator[str]:
    name = f"tilecache_test_{uuid4().hex}"
    _execute(postgres_dsn, SQL("CREATE DATABASE {} {}").format(Identifier(name), options))
    try:
        yield make_conninfo(postgres_dsn, dbname=name)
    finally:
        _execute(postgres_dsn, SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def _execute(dsn: str, statement: SQL | Composed) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A new directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="tilecache-") as directory:
        yield Path(directory)


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[DaemonProcess]:
    """A ready daemon with its own database."""
    with DaemonProcess(short_directory, dsn=database) as process:
        yield process


@pytest.fixture(scope="module")
def shared_daemon(shared_database: str) -> Iterator[DaemonProcess]:
    """A ready daemon, shared by the tests of a module, which use different tiles.

    It writes accesses at once.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tilecache-") as directory,
        DaemonProcess(
            Path(directory), dsn=shared_database, access_flush_interval_s=0.05
        ) as process,
    ):
        yield process
