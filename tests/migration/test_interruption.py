"""An interrupted migration leaves the old schema, and can be run again."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.migration.observed_database import WAITING_SESSIONS, Database
from tilecache_daemon.config import Config
from tilecache_daemon.schema.connection import MIGRATION_LOCK_KEY
from tilecache_daemon.schema.migrator import (
    HEAD_REVISION,
    DatabaseUnreachableError,
    Interruption,
    MigrationError,
    apply_migrations,
)

# 0002 changes the sectors after the tiles.
STOP_HALFWAY = "LOCK TABLE sector_classifications IN ACCESS SHARE MODE"
NO_MIGRATION_RUNS = """NOT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'tilecache migrate'
)"""
PROGRAM = """
import sys
from tilecache_daemon.config import Config
from tilecache_daemon.schema.migrator import apply_migrations
apply_migrations(Config(dsn=sys.argv[1], migration_lock_timeout_s=600))
"""


def test_a_killed_process_leaves_the_old_schema(old: Database, written: Database) -> None:
    catalog, rows = old.catalog(), old.rows("tiles", old.columns("tiles"))
    with old.holding(STOP_HALFWAY):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, old.dsn])
        old.wait_for_waiting_sessions(1)
        process.kill()
        process.wait()
        # PostgreSQL notices it, though its session waits for a lock.
        old.wait_until(NO_MIGRATION_RUNS)

    assert old.catalog() == catalog
    assert old.rows("tiles", old.columns("tiles")) == rows
    assert old.revisions() == ["0001_initial"]

    apply_migrations(Config(dsn=old.dsn))
    assert old.catalog() == written.catalog()


def test_a_terminated_backend_leaves_the_old_schema(old: Database, written: Database) -> None:
    catalog = old.catalog()
    with ThreadPoolExecutor() as executor, old.holding(STOP_HALFWAY):
        start = executor.submit(apply_migrations, Config(dsn=old.dsn))
        old.wait_for_waiting_sessions(1)
        old.query(f"SELECT pg_terminate_backend(pid) FROM ({WAITING_SESSIONS}) AS waiting")
        with pytest.raises(DatabaseUnreachableError, match="connection to the database was lost"):
            start.result()

    assert old.catalog() == catalog
    assert old.revisions() == ["0001_initial"]

    assert apply_migrations(Config(dsn=old.dsn)).to_revision == HEAD_REVISION
    assert old.catalog() == written.catalog()


@pytest.mark.parametrize("lock", [f"SELECT pg_advisory_lock({MIGRATION_LOCK_KEY})", STOP_HALFWAY])
def test_an_interrupted_migration_ends_at_once_and_changes_nothing(
    old: Database, lock: str
) -> None:
    catalog, interruption = old.catalog(), Interruption()
    with ThreadPoolExecutor() as starters, old.holding(lock):
        start = starters.submit(apply_migrations, Config(dsn=old.dsn), interruption=interruption)
        old.wait_for_waiting_sessions(1)
        interruption.request()
        with pytest.raises(MigrationError):
            start.result()
        old.wait_until(NO_MIGRATION_RUNS)

    assert old.catalog() == catalog
    assert old.revisions() == ["0001_initial"]


def test_no_migration_begins_after_its_interruption(empty: Database) -> None:
    interruption = Interruption()
    interruption.request()
    with pytest.raises(MigrationError, match="interrupted"):
        apply_migrations(Config(dsn=empty.dsn), interruption=interruption)
    assert empty.catalog() == []
