"""Revision 0007: no writer stores a time that clients cannot read."""

import psycopg
import pytest

from tests.migration.observed_database import Database
from tilecache_daemon.config import Config
from tilecache_daemon.schema.migrator import apply_migrations, downgrade

COLUMNS = ("captured_at", "created_at", "accessed_at", "uploaded_at")
INVALID = ("infinity", "-infinity", "0001-12-31 23:59:59+00 BC", "10000-01-01 00:00:00+00")
VALID = ("0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("time", INVALID)
def test_a_time_outside_the_calendar_is_refused(newest: Database, column: str, time: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="years 1 to 9999"):
        newest.insert_tile(**{column: time})
    newest.insert_tile()
    with pytest.raises(psycopg.errors.CheckViolation, match="years 1 to 9999"):
        newest.query(f"UPDATE tiles SET {column} = %s", time)


@pytest.mark.parametrize("time", VALID)
def test_the_first_and_the_last_time_are_stored(newest: Database, time: str) -> None:
    newest.insert_tile(**dict.fromkeys(COLUMNS, time))
    newest.query("UPDATE tiles SET captured_at = accessed_at, accessed_at = %s", time)

    assert newest.query("SELECT count(*) FROM tiles") == [(1,)]


def test_a_row_that_already_violates_it_can_be_changed_otherwise(newest: Database) -> None:
    downgrade(newest.dsn, "0006_file_owners")
    newest.insert_tile(captured_at="infinity")
    apply_migrations(Config(dsn=newest.dsn))

    newest.query("UPDATE tiles SET freshness_status = 'rejected', accessed_at = now()")
    newest.query("UPDATE tiles SET captured_at = now()")

    assert newest.query("SELECT freshness_status FROM tiles") == [("rejected",)]
