"""Revision 0006: no file that a tile names is on the list of removals, whoever writes."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.sql import SQL

from tests.migration.observed_database import Database
from tilecache_daemon.config import Config
from tilecache_daemon.schema.migrator import apply_migrations, downgrade

PATH = "3/1/2.jpg"
LIST = (
    "INSERT INTO tile_evictions (tile_uuid, zoom, x, y, source, file_path, evicted_at, reason) "
    "VALUES (gen_random_uuid(), 3, 1, 2, 'googlemaps', '3/1/2.jpg', now(), 'deleted')"
)
NAME = (
    "INSERT INTO tiles (zoom, x, y, source, latitude, longitude, tile_size_meters, "
    "tile_size_pixels, file_path, captured_at, tile_uuid, location_hash) "
    "VALUES (3, 7, 7, 'googlemaps', 0, 0, 1, 256, '3/1/2.jpg', now(), "
    "gen_random_uuid(), gen_random_uuid())"
)
RENAME = "UPDATE tiles SET file_path = '3/1/2.jpg' WHERE x = 5"
BOTH = "SELECT count(*) FROM tiles JOIN tile_evictions USING (file_path)"


def test_a_named_file_cannot_be_listed(newest: Database) -> None:
    newest.insert_tile(file_path=PATH)

    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="belongs to a tile"):
        newest.query(LIST)
    newest.query(LIST.replace(PATH, "other.jpg"))
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="belongs to a tile"):
        newest.query("UPDATE tile_evictions SET file_path = '3/1/2.jpg'")


@pytest.mark.parametrize("naming", [NAME, RENAME])
def test_a_listed_file_cannot_be_named(newest: Database, naming: str) -> None:
    newest.insert_tile(x=5, file_path="5.jpg")
    newest.query(LIST)

    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="listed for removal"):
        newest.query(naming)
    newest.query("UPDATE tiles SET file_path = file_path || '.old'")


@pytest.mark.parametrize("naming", [NAME, RENAME])
@pytest.mark.parametrize("listing_first", [True, False])
def test_of_two_writers_at_once_one_sees_the_other(
    newest: Database, naming: str, listing_first: bool
) -> None:
    newest.insert_tile(x=5, file_path="5.jpg")
    first, second = (LIST, naming) if listing_first else (naming, LIST)
    refused: list[Exception] = []

    def write_second() -> None:
        try:
            newest.query(second)
        except psycopg.errors.IntegrityConstraintViolation as error:
            refused.append(error)

    with psycopg.connect(newest.dsn) as connection:
        connection.execute(SQL(first))
        writer = threading.Thread(target=write_second)
        writer.start()
        newest.wait_for_waiting_sessions(1)
        connection.commit()
    writer.join()

    assert len(refused) == 1
    assert newest.query(BOTH) == [(0,)]


def test_writers_that_name_files_do_not_wait_for_each_other(newest: Database) -> None:
    with newest.holding(NAME):
        newest.insert_tile(file_path=PATH)

    assert newest.query("SELECT count(*) FROM tiles") == [(2,)]


def test_a_batch_of_any_size_takes_one_lock(newest: Database) -> None:
    many = NAME.replace("VALUES (3, 7,", "SELECT 16, n,").replace("7, 'g", "1, 'g", 1)
    many = many.replace("gen_random_uuid())", "gen_random_uuid() FROM generate_series(1, 20000) n")
    with psycopg.connect(newest.dsn) as connection:
        connection.execute(SQL(many))
        held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert held.fetchall() == [(1,)]


@pytest.mark.parametrize("statement", [NAME, LIST])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_writer_with_an_old_snapshot_is_refused(
    newest: Database, statement: str, level: str
) -> None:
    with psycopg.connect(newest.dsn) as connection:
        connection.execute(SQL(f"SET TRANSACTION ISOLATION LEVEL {level}"))
        with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"):
            connection.execute(SQL(statement))


@pytest.fixture
def before(newest: Database) -> Iterator[Database]:
    """A database without the revision."""
    downgrade(newest.dsn, "0005_block_notifications")
    return newest


def test_the_revision_takes_named_files_off_the_list(before: Database) -> None:
    before.insert_tile(file_path=PATH)
    before.query(LIST)
    before.query(LIST.replace(PATH, "other.jpg"))

    apply_migrations(Config(dsn=before.dsn))

    assert before.query("SELECT file_path FROM tile_evictions") == [("other.jpg",)]
