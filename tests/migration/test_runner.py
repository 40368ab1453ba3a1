"""`apply_migrations`, `downgrade` and `plan_migrations`."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.migration.observed_database import Database
from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache_daemon.config import Config
from tilecache_daemon.errors import TileCacheError
from tilecache_daemon.schema.connection import MIGRATION_LOCK_KEY
from tilecache_daemon.schema.migrator import (
    HEAD_REVISION,
    REVISIONS,
    DatabaseUnreachableError,
    MigrationError,
    apply_migrations,
    current_revision,
    downgrade,
    plan_migrations,
)

HOLD_THE_LOCK = f"SELECT pg_advisory_lock({MIGRATION_LOCK_KEY})"


LEAVE_TILES = {"0008_pins", "0009_sector_polygons"}
"""Revisions that do not touch the table of tiles."""


def fail_attempts(database: Database, sqlstate: str, failures: int) -> None:
    """Makes PostgreSQL raise an error in the first runs. A sequence survives a rollback."""
    database.query("CREATE SEQUENCE attempts")
    database.query(f"""
        CREATE FUNCTION fail_attempt() RETURNS event_trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('attempts') <= {failures} THEN
                RAISE EXCEPTION 'raised by the test' USING ERRCODE = '{sqlstate}';
            END IF;
        END $$
    """)
    database.query("""
        CREATE EVENT TRIGGER fail_attempt ON ddl_command_start WHEN TAG IN ('CREATE SEQUENCE')
        EXECUTE FUNCTION fail_attempt()
    """)


def attempts(database: Database) -> int:
    ((number,),) = database.query("SELECT last_value FROM attempts")
    return int(number)


@contextmanager
def unprivileged(dsn: str) -> Iterator[str]:
    """The address of the database for a role without privileges."""
    role = f"tilecache_guest_{uuid4().hex}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        admin.execute(f"CREATE ROLE {role}")
        try:
            yield make_conninfo(dsn, options=f"-c role={role}")
        finally:
            admin.execute(f"DROP ROLE {role}")


def test_the_result_has_the_applied_revisions(empty: Database) -> None:
    result = apply_migrations(Config(dsn=empty.dsn))

    assert result.from_revision is None
    assert result.to_revision == HEAD_REVISION
    assert result.revisions_applied == REVISIONS
    assert result.elapsed_s > 0


def test_the_result_has_only_the_pending_revisions(old: Database) -> None:
    result = apply_migrations(Config(dsn=old.dsn))

    assert result.from_revision == "0001_initial"
    assert result.revisions_applied == REVISIONS[1:]


def test_at_head_nothing_is_applied(empty: Database) -> None:
    apply_migrations(Config(dsn=empty.dsn))

    result = apply_migrations(Config(dsn=empty.dsn))

    assert result.from_revision == result.to_revision == HEAD_REVISION
    assert result.revisions_applied == ()


def test_the_result_is_frozen(empty: Database) -> None:
    result = apply_migrations(Config(dsn=empty.dsn))

    with pytest.raises(FrozenInstanceError):
        result.to_revision = "0001_initial"  # type: ignore[misc]


def test_a_migration_error_is_outside_the_stores_errors() -> None:
    assert not issubclass(MigrationError, TileCacheError)
    assert issubclass(DatabaseUnreachableError, MigrationError)


def test_at_head_neither_alembic_nor_sqlalchemy_is_loaded(empty: Database) -> None:
    apply_migrations(Config(dsn=empty.dsn))
    program = """
import sys
from tilecache_daemon.config import Config
from tilecache_daemon.schema.migrator import apply_migrations
apply_migrations(Config(dsn=sys.argv[1]))
print(sorted({"alembic", "sqlalchemy"} & set(sys.modules)))
"""

    ran = subprocess.run(
        [sys.executable, "-c", program, empty.dsn], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "[]\n"


def test_at_head_a_start_does_not_wait_for_the_lock(empty: Database) -> None:
    apply_migrations(Config(dsn=empty.dsn))

    with empty.holding(HOLD_THE_LOCK):
        result = apply_migrations(Config(dsn=empty.dsn, migration_lock_timeout_s=0.001))

    assert result.to_revision == HEAD_REVISION


def test_the_address_is_taken_from_the_environment(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_URL", empty.dsn)

    apply_migrations(Config())

    assert current_revision(empty.dsn) == HEAD_REVISION


def test_the_configured_address_overrides_the_environment(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DB_URL", f"host={tmp_path} dbname=absent")

    apply_migrations(Config(dsn=empty.dsn))

    assert current_revision(empty.dsn) == HEAD_REVISION


def test_a_missing_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DB_URL", raising=False)
    monkeypatch.delenv("TILECACHE_DSN", raising=False)

    with pytest.raises(MigrationError, match="DB_URL"):
        apply_migrations(Config())


def test_a_malformed_address_is_reported_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_URL", "host=localhost password=hush bare")

    with pytest.raises(MigrationError, match="connection string") as error:
        apply_migrations(Config())

    assert "hush" not in str(error.value)


def test_one_line_logs_what_was_applied(empty: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    apply_migrations(Config(dsn=empty.dsn))

    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith(f"Migrated the schema from base to {HEAD_REVISION} ")
    assert str(TILE_NAMESPACE_UUID) in line.getMessage()
    facts: dict[str, object] = vars(line)["kv"]
    assert vars(line)["kind"] == "schema_migrated"
    assert (facts["from_revision"], facts["to_revision"]) == ("base", HEAD_REVISION)
    assert facts["revisions"] == list(REVISIONS)
    assert facts["namespace_uuid"] == str(TILE_NAMESPACE_UUID)


def test_one_line_logs_that_nothing_was_applied(
    empty: Database, caplog: pytest.LogCaptureFixture
) -> None:
    apply_migrations(Config(dsn=empty.dsn))
    caplog.set_level(logging.INFO)
    caplog.clear()

    apply_migrations(Config(dsn=empty.dsn))

    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith(f"The schema is at {HEAD_REVISION}, nothing to migrate")
    assert str(TILE_NAMESPACE_UUID) in line.getMessage()
    facts: dict[str, object] = vars(line)["kv"]
    assert vars(line)["kind"] == "schema_at_head"
    assert (facts["to_revision"], facts["revisions"]) == (HEAD_REVISION, [])
    assert facts["namespace_uuid"] == str(TILE_NAMESPACE_UUID)


def test_of_two_starts_one_migrates_and_the_other_waits(empty: Database) -> None:
    config = Config(dsn=empty.dsn)
    with ThreadPoolExecutor(2) as executor:
        with empty.holding(HOLD_THE_LOCK):
            starts = [executor.submit(apply_migrations, config) for _ in range(2)]
            empty.wait_for_waiting_sessions(2)
        results = [start.result() for start in starts]

    assert sorted(len(result.revisions_applied) for result in results) == [0, len(REVISIONS)]
    assert {result.to_revision for result in results} == {HEAD_REVISION}


def test_the_wait_for_another_start_is_bounded(empty: Database) -> None:
    config = Config(dsn=empty.dsn, migration_lock_timeout_s=0.1)

    with (
        empty.holding(HOLD_THE_LOCK),
        pytest.raises(MigrationError, match="migration_lock_timeout_s"),
    ):
        apply_migrations(config)

    assert empty.catalog() == []


def test_the_wait_for_a_locked_table_is_bounded(old: Database) -> None:
    config = Config(dsn=old.dsn, migration_lock_timeout_s=0.1)

    with (
        old.holding("LOCK TABLE tiles IN ACCESS SHARE MODE"),
        pytest.raises(MigrationError, match="locked the tables"),
    ):
        apply_migrations(config)

    assert old.revisions() == ["0001_initial"]


def test_a_timeout_meant_for_queries_does_not_cancel_a_migration(empty: Database) -> None:
    with psycopg.connect(empty.dsn) as connection:
        name = connection.info.dbname
    empty.query(f"ALTER DATABASE {name} SET statement_timeout = '500ms'")
    empty.query("""
        CREATE FUNCTION delay() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.6); END $$
    """)
    empty.query("""
        CREATE EVENT TRIGGER delay ON ddl_command_start WHEN TAG IN ('CREATE SEQUENCE')
        EXECUTE FUNCTION delay()
    """)

    assert apply_migrations(Config(dsn=empty.dsn)).to_revision == HEAD_REVISION


@pytest.mark.parametrize("revision", ["9999_from_the_future", "deadbeef"])
def test_a_newer_or_unknown_revision_is_refused_and_unchanged(
    empty: Database, revision: str
) -> None:
    apply_migrations(Config(dsn=empty.dsn))
    empty.query("UPDATE alembic_version SET version_num = %s", revision)
    catalog = empty.catalog()

    for act in (
        lambda: apply_migrations(Config(dsn=empty.dsn)),
        lambda: downgrade(empty.dsn, "0001_initial"),
        lambda: plan_migrations(empty.dsn),
    ):
        with pytest.raises(MigrationError, match=f"'{revision}', which this version does not"):
            act()

    assert empty.catalog() == catalog
    assert empty.revisions() == [revision]


def test_several_revisions_at_once_are_refused_and_unchanged(old: Database) -> None:
    old.query("INSERT INTO alembic_version VALUES ('0003_access_sequence')")
    catalog = old.catalog()

    with pytest.raises(MigrationError, match=r"\(0001_initial, 0003_access_sequence\)"):
        apply_migrations(Config(dsn=old.dsn))

    assert old.catalog() == catalog


def test_a_serialization_failure_is_retried_once(empty: Database) -> None:
    fail_attempts(empty, "40001", failures=1)

    result = apply_migrations(Config(dsn=empty.dsn))

    assert attempts(empty) == 2
    assert result.revisions_applied == REVISIONS
    assert empty.revisions() == [HEAD_REVISION]


def test_a_second_serialization_failure_is_final(empty: Database) -> None:
    fail_attempts(empty, "40001", failures=2)
    before = empty.catalog()

    with pytest.raises(MigrationError, match="twice") as error:
        apply_migrations(Config(dsn=empty.dsn))

    assert attempts(empty) == 2
    assert isinstance(error.value.__cause__, psycopg.errors.SerializationFailure)
    assert empty.catalog() == before


def test_other_failures_are_not_retried(empty: Database) -> None:
    fail_attempts(empty, "53100", failures=1)

    with pytest.raises(MigrationError, match="no disk space left") as error:
        apply_migrations(Config(dsn=empty.dsn))

    assert attempts(empty) == 1
    assert isinstance(error.value.__cause__, psycopg.errors.DiskFull)


def test_an_unreachable_database_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachableError, match="does not answer") as error:
        apply_migrations(Config(dsn=f"host={tmp_path} dbname=absent"))

    assert isinstance(error.value.__cause__, psycopg.OperationalError)


def test_missing_privileges_are_reported(empty: Database) -> None:
    with (
        unprivileged(empty.dsn) as dsn,
        pytest.raises(MigrationError, match="lacks the privileges") as error,
    ):
        apply_migrations(Config(dsn=dsn))

    assert isinstance(error.value.__cause__, psycopg.errors.InsufficientPrivilege)


def test_tables_that_no_migration_created_are_unchanged(empty: Database) -> None:
    empty.query("CREATE TABLE tiles (mine integer)")
    before = empty.catalog()

    with pytest.raises(MigrationError, match="tables that no migration created"):
        apply_migrations(Config(dsn=empty.dsn))

    assert empty.catalog() == before


def test_the_plan_migrates_an_empty_database_to_head(empty: Database, written: Database) -> None:
    plan = plan_migrations(empty.dsn)
    assert empty.catalog() == []

    for revision in plan:
        empty.query(revision.sql)

    assert [revision.revision for revision in plan] == list(REVISIONS)
    assert all(revision.doc for revision in plan)
    assert empty.catalog() == written.catalog()
    assert empty.revisions() == [HEAD_REVISION]


def test_at_head_the_plan_is_empty(empty: Database) -> None:
    apply_migrations(Config(dsn=empty.dsn))

    assert plan_migrations(empty.dsn) == []


def test_the_result_of_a_downgrade_has_the_reverted_revisions(old: Database) -> None:
    apply_migrations(Config(dsn=old.dsn))

    result = downgrade(old.dsn, "0001_initial")

    assert (result.from_revision, result.to_revision) == (HEAD_REVISION, "0001_initial")
    assert result.revisions_applied == REVISIONS[:0:-1]
    assert current_revision(old.dsn) == "0001_initial"


def test_a_downgrade_to_the_same_revision_does_nothing(old: Database) -> None:
    assert downgrade(old.dsn, "0001_initial").revisions_applied == ()


def test_a_downgrade_waits_for_the_same_lock(old: Database) -> None:
    with old.holding(HOLD_THE_LOCK), pytest.raises(MigrationError, match="another process"):
        downgrade(old.dsn, "base", lock_timeout_s=0.1)


@pytest.mark.parametrize("revision", [HEAD_REVISION, "0000_nothing"])
def test_a_downgrade_to_a_later_or_unknown_revision_is_refused(
    old: Database, revision: str
) -> None:
    with pytest.raises(MigrationError, match=revision):
        downgrade(old.dsn, revision)

    assert old.revisions() == ["0001_initial"]


def add_old_tiles(old: Database, count: int, path_length: int = 20) -> None:
    """Inserts tiles of the baseline."""
    old.query(f"""
        INSERT INTO tiles (zoom, x, y, source, latitude, longitude, tile_size_meters,
                           tile_size_pixels, file_path, captured_at)
        SELECT 18, number, 0, 'googlemaps', 0, 0, 1, 256, lpad(number::text, {path_length}), now()
        FROM generate_series(1, {count}) AS number
    """)


def test_an_upgrade_reports_its_progress_and_updates_the_statistics(old: Database) -> None:
    add_old_tiles(old, 20_000)
    reported: list[str] = []

    apply_migrations(Config(dsn=old.dsn), report_progress=reported.append)

    assert reported == [
        "derived the ids of 20,000 of 20,005 tiles",
        "derived the ids of 20,005 of 20,005 tiles",
    ]
    ((analysed,),) = old.query(
        "SELECT count(*) FROM pg_stats WHERE tablename = 'tiles' AND attname = 'tile_uuid'"
    )
    assert analysed == 1


def test_a_plan_counts_tiles_whatever_their_rows_size(old: Database) -> None:
    estimates = []
    for path_length in (20, 1_000):
        old.query("TRUNCATE tiles")
        add_old_tiles(old, 10_000, path_length)
        old.query("ANALYZE tiles")
        estimates.append(sum(step.estimated_bytes for step in plan_migrations(old.dsn)))

    assert estimates[1] == pytest.approx(estimates[0], rel=0.1)


@pytest.mark.parametrize("statistics", ["current", "absent"])
def test_a_plan_estimates_time_and_space_from_the_tables_size(
    old: Database, statistics: str
) -> None:
    old.query("ALTER TABLE tiles SET (autovacuum_enabled = false)")
    add_old_tiles(old, 20_000)
    if statistics == "current":
        old.query("ANALYZE tiles")

    planned = plan_migrations(old.dsn)
    ((before,),) = old.query("SELECT pg_total_relation_size('tiles')")
    apply_migrations(Config(dsn=old.dsn))
    ((after,),) = old.query("SELECT pg_total_relation_size('tiles')")

    assert all(step.estimated_s > 0 for step in planned if step.revision not in LEAVE_TILES)
    estimated = sum(step.estimated_bytes for step in planned)
    assert 0.5 < estimated / (after - before) < 2
