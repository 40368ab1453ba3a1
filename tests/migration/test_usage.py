"""Revisions 0004 and 0010: the usage that triggers maintain equals a count over the table."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.sql import SQL

from tests.migration.observed_database import FLIGHT, Database
from tilecache_daemon.schema.migrator import HEAD_REVISION, downgrade
from tilecache_daemon.store.sql import load_queries

COUNTED = """
    SELECT zoom, source, freshness_status, source = 'onboard_ingest' AND uploaded_at IS NULL,
           count(*), coalesce(sum(disk_bytes), 0),
           count(*) FILTER (WHERE disk_bytes IS NULL)
    FROM tiles GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""
STORED = """
    SELECT zoom, source, freshness_status, pending_upload, sum(tile_count)::bigint,
           sum(used_bytes), sum(unknown_size_count)::bigint
    FROM tile_usage GROUP BY 1, 2, 3, 4
    HAVING sum(tile_count) <> 0 OR sum(used_bytes) <> 0 OR sum(unknown_size_count) <> 0
    ORDER BY 1, 2, 3, 4
"""
FILL = """
    INSERT INTO tiles (
        zoom, x, y, source, flight_id, latitude, longitude, tile_size_meters, tile_size_pixels,
        file_path, captured_at, tile_uuid, location_hash, disk_bytes, freshness_status, uploaded_at
    )
    SELECT zoom, x, 0, source, CASE source WHEN 'onboard_ingest' THEN {flight}::uuid END,
           0, 0, 1, 256, zoom || '/' || x, now(), gen_random_uuid(), gen_random_uuid(),
           nullif(x * 100, 300), (ARRAY['fresh', 'downgraded', 'stale_warn'])[x % 3 + 1],
           CASE WHEN x % 2 = 0 THEN now() END
    FROM unnest(ARRAY[4, 5]) AS zoom,
         unnest(ARRAY['googlemaps', 'onboard_ingest']) AS source,
         generate_series(0, 11) AS x
""".format(flight=f"'{FLIGHT}'")


@pytest.fixture
def filled(newest: Database) -> Database:
    """Tiles of two zooms and sources, some waiting for upload, some of unknown size."""
    newest.query(FILL)
    return newest


FLIGHTS_COUNTED = """
    SELECT flight_id, zoom, count(*), coalesce(sum(disk_bytes), 0),
           count(*) FILTER (WHERE uploaded_at IS NULL AND source = 'onboard_ingest'),
           coalesce(sum(disk_bytes) FILTER (
               WHERE uploaded_at IS NULL AND source = 'onboard_ingest'
           ), 0)
    FROM tiles WHERE flight_id IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
"""
FLIGHTS_STORED = """
    SELECT flight_id, zoom, sum(tile_count)::bigint, sum(used_bytes),
           sum(pending_count)::bigint, sum(pending_bytes)
    FROM tile_flight_usage GROUP BY 1, 2
    HAVING sum(tile_count) <> 0 OR sum(used_bytes) <> 0
        OR sum(pending_count) <> 0 OR sum(pending_bytes) <> 0
    ORDER BY 1, 2
"""


def assert_usage_is_counted(database: Database) -> list[object]:
    kept = database.query(STORED)
    assert kept == database.query(COUNTED)
    if HEAD_REVISION in database.revisions():
        assert database.query(FLIGHTS_STORED) == database.query(FLIGHTS_COUNTED)
    return kept


def test_an_insert_is_counted(filled: Database) -> None:
    kept = assert_usage_is_counted(filled)

    downloaded, onboard = 3, 3 * 2
    assert len(kept) == 2 * (downloaded + onboard), "by label, and onboard by upload"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tiles SET zoom = 6 WHERE zoom = 5",
        "UPDATE tiles SET source = 'googlemaps', flight_id = NULL, x = x + 12 "
        "WHERE source = 'onboard_ingest' AND x < 5",
        "UPDATE tiles SET freshness_status = 'rejected' WHERE x % 4 = 1",
        "UPDATE tiles SET uploaded_at = now() WHERE uploaded_at IS NULL",
        "UPDATE tiles SET uploaded_at = NULL WHERE x = 4",
        "UPDATE tiles SET disk_bytes = disk_bytes + 7",
        "UPDATE tiles SET disk_bytes = 5 WHERE disk_bytes IS NULL",
        "UPDATE tiles SET disk_bytes = NULL WHERE x = 1",
        "UPDATE tiles SET zoom = zoom + 5, freshness_status = 'rejected', disk_bytes = 1, "
        "uploaded_at = NULL WHERE x = 2",
        "DELETE FROM tiles WHERE x % 3 = 0",
        "DELETE FROM tiles",
        "TRUNCATE tiles",
    ],
)
def test_a_change_is_counted(filled: Database, statement: str) -> None:
    before = filled.query(STORED)

    filled.query(statement)

    assert assert_usage_is_counted(filled) != before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tiles SET accessed_at = now(), access_order = nextval('tile_access_order_seq')",
        "UPDATE tiles SET uploaded_at = now() + interval '1 day' WHERE uploaded_at IS NOT NULL",
        "UPDATE tiles SET file_path = 'moved/' || file_path",
        "UPDATE tiles SET disk_bytes = disk_bytes, freshness_status = freshness_status",
    ],
)
def test_an_irrelevant_change_adds_no_row(filled: Database, statement: str) -> None:
    before = filled.query("SELECT count(*) FROM tile_usage")

    filled.query(statement)

    assert filled.query("SELECT count(*) FROM tile_usage") == before
    assert_usage_is_counted(filled)


def test_an_upsert_is_counted(filled: Database) -> None:
    filled.query(
        FILL + "ON CONFLICT (zoom, x, y, source, "
        "(coalesce(flight_id, '00000000-0000-0000-0000-000000000000'::uuid))) "
        "DO UPDATE SET disk_bytes = 1"
    )

    assert_usage_is_counted(filled)


def test_a_rollback_is_not_counted(filled: Database) -> None:
    before = filled.query(STORED)
    with psycopg.connect(filled.dsn) as connection:
        connection.execute("DELETE FROM tiles WHERE x < 5")
        connection.execute("UPDATE tiles SET disk_bytes = 1")
        connection.rollback()

    assert filled.query(STORED) == before


def test_two_writers_do_not_wait_for_each_other(filled: Database) -> None:
    with psycopg.connect(filled.dsn) as first, psycopg.connect(filled.dsn) as second:
        second.execute("SET lock_timeout = 1")
        for connection, parity in ((first, 0), (second, 1)):
            connection.execute("UPDATE tiles SET disk_bytes = 9 WHERE x %% 2 = %s", (parity,))
            connection.execute("DELETE FROM tiles WHERE x %% 4 = %s", (parity,))

    assert_usage_is_counted(filled)


def test_concurrent_writers_are_all_counted(filled: Database) -> None:
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda number: write_at_random(filled.dsn, number), range(4)))

    assert_usage_is_counted(filled)


def write_at_random(dsn: str, number: int) -> None:
    """Statements on rows that other writers change, too."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements(number):
            try:
                connection.execute(SQL(statement))
            except psycopg.errors.DeadlockDetected:
                continue


def statements(number: int) -> Iterator[str]:
    for round_ in range(10):
        yield f"UPDATE tiles SET disk_bytes = {round_} + x WHERE x % 3 = {(number + round_) % 3}"
        column = (number + round_) % 12
        yield f"UPDATE tiles SET freshness_status = 'rejected' WHERE x = {column + 1}"
        yield f"DELETE FROM tiles WHERE x = {column} AND zoom = {4 + number % 2}"
        yield FILL + "ON CONFLICT DO NOTHING"
        if number == 0 and round_ == 5:
            yield "TRUNCATE tiles"


def test_tiles_from_before_the_revision_are_counted(filled: Database) -> None:
    before = filled.query(STORED)
    downgrade(filled.dsn, "0003_access_sequence")

    filled.upgrade_to("0004_usage_and_removals")

    assert assert_usage_is_counted(filled) == before


def test_the_flights_of_tiles_from_before_the_revision_are_counted(filled: Database) -> None:
    before = filled.query(FLIGHTS_STORED)
    downgrade(filled.dsn, "0009_sector_polygons")
    filled.query("UPDATE tiles SET disk_bytes = disk_bytes + 1 WHERE x = 2")

    filled.upgrade_to("0010_flights")

    assert filled.query(FLIGHTS_STORED) == filled.query(FLIGHTS_COUNTED) != before


def test_a_tile_moves_to_another_flight(filled: Database) -> None:
    filled.query(
        "UPDATE tiles SET flight_id = gen_random_uuid() WHERE flight_id IS NOT NULL AND x = 1"
    )

    assert len(filled.query(FLIGHTS_STORED)) == 4
    assert_usage_is_counted(filled)


def test_after_a_downgrade_tiles_can_be_written(filled: Database) -> None:
    downgrade(filled.dsn, "0003_access_sequence")

    for statement in (
        "UPDATE tiles SET zoom = 7 WHERE zoom = 4",
        "DELETE FROM tiles WHERE zoom = 5",
        "TRUNCATE tiles",
    ):
        filled.query(statement)


def test_a_row_of_an_open_transaction_is_counted_by_the_revision(filled: Database) -> None:
    downgrade(filled.dsn, "0003_access_sequence")
    with ThreadPoolExecutor(1) as upgrade, psycopg.connect(filled.dsn) as writer:
        writer.execute(SQL(FILL.replace("ARRAY[4, 5]", "ARRAY[6]")))
        upgraded = upgrade.submit(filled.upgrade_to, "0004_usage_and_removals")
        filled.wait_for_waiting_sessions(1)
        writer.commit()
        upgraded.result()

    assert_usage_is_counted(filled)


def test_relabelling_many_rows_writes_a_few_differences(filled: Database) -> None:
    before = filled.query("SELECT count(*) FROM tile_usage")[0][0]

    filled.query("UPDATE tiles SET freshness_status = 'rejected' WHERE source = 'googlemaps'")

    assert filled.query("SELECT count(*) FROM tile_usage")[0][0] - before <= 2 * 4
    assert_usage_is_counted(filled)


def test_a_truncation_beside_a_fold_leaves_no_usage(filled: Database) -> None:
    fold = SQL(load_queries("usage")["fold_usage"])
    with ThreadPoolExecutor(1) as other, psycopg.connect(filled.dsn) as folding:
        folding.execute(fold, {"key": 0x7469_6C65_0004})
        truncated = other.submit(filled.query, "TRUNCATE tiles")
        filled.wait_for_waiting_sessions(1)
        folding.commit()
        truncated.result()

    assert assert_usage_is_counted(filled) == []


def test_sizes_of_any_magnitude_can_be_summed(filled: Database) -> None:
    filled.query("UPDATE tiles SET disk_bytes = 9223372036854775807")

    total = filled.query("SELECT sum(used_bytes) FROM tile_usage")
    assert total == filled.query("SELECT sum(disk_bytes) FROM tiles")
