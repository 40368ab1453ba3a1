"""Revision 0005: a notification of each changed block of 32 x 32 cells, after the commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL

from tests.migration.observed_database import Database
from tilecache_daemon.schema.migrator import downgrade

CHANNEL = "tilecache_changes"
FILL = """
    INSERT INTO tiles (
        zoom, x, y, source, latitude, longitude, tile_size_meters, tile_size_pixels,
        file_path, captured_at, tile_uuid, location_hash
    )
    SELECT {zoom}, x, y, 'googlemaps', 0, 0, 1, 256,
           'f', now(), gen_random_uuid(), gen_random_uuid()
    FROM generate_series({x_from}, {x_to}, {step}) AS x,
         generate_series({y_from}, {y_to}, {step}) AS y
"""
FILL_FOUR = FILL.format(zoom=3, x_from=0, x_to=1, y_from=0, y_to=1, step=1)


class Listener:
    """A connection that listens on the channel."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def payloads(self) -> list[str]:
        """The payloads since the last call: all of commits so far, up to a mark sent here."""
        self._connection.execute(SQL("NOTIFY {}, 'mark'").format(SQL(CHANNEL)))
        payloads = []
        for notification in self._connection.notifies():
            if notification.payload == "mark":
                break
            payloads.append(notification.payload)
        return payloads

    def blocks(self) -> set[str]:
        """The blocks in the payloads of writers without a name."""
        named = (payload.removeprefix(" ").split(",") for payload in self.payloads())
        return {block for blocks in named for block in blocks}


@contextmanager
def listening(database: Database) -> Iterator[Listener]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        yield Listener(connection)


@pytest.fixture
def listener(newest: Database) -> Iterator[Listener]:
    with listening(newest) as listener:
        yield listener


def fill(database: Database, zoom: int, x: range, y: range) -> None:
    database.query(
        FILL.format(zoom=zoom, x_from=x[0], x_to=x[-1], y_from=y[0], y_to=y[-1], step=x.step)
    )


def test_an_insert_names_its_blocks_each_once(newest: Database, listener: Listener) -> None:
    fill(newest, 18, range(100, 140), range(64, 66))

    assert listener.payloads() in ([" 18/3/2,18/4/2"], [" 18/4/2,18/3/2"])


def test_an_update_names_where_tiles_were_and_are(newest: Database, listener: Listener) -> None:
    fill(newest, 10, range(1), range(1))
    listener.payloads()

    newest.query("UPDATE tiles SET zoom = 9, x = 70, y = 33")

    assert listener.blocks() == {"10/0/0", "9/2/1"}


def test_a_delete_names_its_blocks(newest: Database, listener: Listener) -> None:
    fill(newest, 10, range(64), range(1))
    listener.payloads()

    newest.query("DELETE FROM tiles WHERE x < 32")

    assert listener.blocks() == {"10/0/0"}


def test_a_truncate_names_everything(newest: Database, listener: Listener) -> None:
    fill(newest, 10, range(1), range(1))
    listener.payloads()

    newest.query("TRUNCATE tiles")

    assert listener.payloads() == [" *"]


def test_a_copy_names_its_blocks(newest: Database, listener: Listener) -> None:
    columns = (
        "zoom, x, y, source, latitude, longitude, tile_size_meters, tile_size_pixels, file_path, "
        "captured_at, tile_uuid, location_hash"
    )
    with (
        psycopg.connect(newest.dsn) as connection,
        connection.cursor().copy(f"COPY tiles ({columns}) FROM STDIN") as copy,
    ):
        for x in (0, 40):
            copy.write_row((9, x, 0, "googlemaps", 0, 0, 1, 256, "f", "now", *[uuid4()] * 2))

    assert listener.blocks() == {"9/0/0", "9/1/0"}


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tiles WHERE zoom = 1",
        "UPDATE tiles SET zoom = 2 WHERE zoom = 1",
        "UPDATE flights SET name = 'x'",
    ],
)
def test_a_statement_without_changes_sends_no_blocks(
    newest: Database, listener: Listener, statement: str
) -> None:
    newest.query(statement)

    assert listener.payloads() == []


def test_a_rollback_sends_nothing(newest: Database, listener: Listener) -> None:
    with psycopg.connect(newest.dsn) as connection:
        connection.execute(FILL_FOUR)
        connection.rollback()

    assert listener.payloads() == []


def test_the_name_of_a_writer_is_in_the_payload(newest: Database, listener: Listener) -> None:
    with psycopg.connect(newest.dsn) as connection:
        connection.execute("SET tilecache.writer = 'daemon-7'")
        connection.execute(FILL_FOUR)

    assert listener.payloads() == ["daemon-7 3/0/0"]


def test_many_blocks_are_split_into_several_notifications(
    newest: Database, listener: Listener
) -> None:
    """PostgreSQL accepts payloads of less than 8000 bytes."""
    last = (1 << 22) - 1
    side = range(last - 39 * 32, last + 1, 32)
    fill(newest, 22, side, side)

    payloads = listener.payloads()

    blocks = [block for payload in payloads for block in payload.removeprefix(" ").split(",")]
    assert len(payloads) > 1
    assert sorted(blocks) == sorted(f"22/{x >> 5}/{y >> 5}" for x in side for y in side)


def test_after_a_downgrade_nothing_is_sent_and_tiles_can_be_written(newest: Database) -> None:
    fill(newest, 3, range(4), range(4))
    downgrade(newest.dsn, "0004_usage_and_removals")
    with listening(newest) as listener:
        for statement in (
            "UPDATE tiles SET zoom = 7",
            "DELETE FROM tiles WHERE x = 1",
            "TRUNCATE tiles",
        ):
            newest.query(statement)

        assert listener.payloads() == []
