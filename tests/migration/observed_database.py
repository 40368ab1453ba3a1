"""Access to a database under test, independent of the code under test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from psycopg.sql import SQL

from tilecache_daemon.schema.alembic_runner import run_alembic
from tilecache_daemon.schema.connection import connect
from tilecache_daemon.schema.migrator import find_migrations

TIMEOUT_S = 60
CATALOG_QUERY = (Path(__file__).parent / "catalog.sql").read_text()

FLIGHT = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
OLD_TILES = [
    (18, 154321, 95812, "googlemaps", None, "fresh"),
    (0, 0, 0, "googlemaps", None, "stale_warn"),
    (20, 617284, 383250, "onboard_ingest", FLIGHT, "stale_reject"),
    (18, 154321, 95812, "onboard_ingest", FLIGHT, "fresh"),
    (22, 4194303, 4194303, "googlemaps", None, "fresh"),
]
"""The cells, sources and flights of the locked vectors."""


class Database(NamedTuple):
    """A database. Every call uses its own connection."""

    dsn: str

    def query(self, sql: str, *parameters: object) -> list[Any]:
        """Executes and commits a statement; returns its rows."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(SQL(sql), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def catalog(self) -> list[str]:
        """All columns, constraints, indexes, sequences, triggers and functions except Alembic's."""
        return [line for (line,) in self.query(CATALOG_QUERY)]

    def columns(self, table: str) -> str:
        """The names of a table's columns, as for a SELECT."""
        ((names,),) = self.query(
            "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            table,
        )
        return str(names)

    def rows(self, table: str, columns: str) -> list[str]:
        """The rows in PostgreSQL's text format."""
        return [
            row for (row,) in self.query(f"SELECT ROW({columns})::text FROM {table} ORDER BY id")
        ]

    def revisions(self) -> list[str]:
        """The revisions in Alembic's table."""
        return [row for (row,) in self.query("SELECT version_num FROM alembic_version")]

    def insert_old_tile(
        self,
        zoom: int,
        x: int,
        y: int,
        source: str,
        flight_id: str | None = None,
        label: str = "fresh",
    ) -> None:
        """Inserts a tile with the columns of 0001_initial."""
        self.query(
            """
            INSERT INTO tiles (
                zoom, x, y, source, flight_id, latitude, longitude, tile_size_meters,
                tile_size_pixels, file_path, captured_at, freshness_status, tile_quality_metadata
            ) VALUES (%s, %s, %s, %s, %s, 47.1, 31.05, 152.8740565703525, 256, 'a/b.jpg',
                '2026-02-28 23:59:59.123456+00', %s, '{"sharpness": 0.5, "b": null}')
            """,
            *(zoom, x, y, source, flight_id, label),
        )

    def insert_tile(self, **columns: object) -> None:
        """Inserts a tile with the columns of the newest schema."""
        tile = {
            "zoom": 3,
            "x": 1,
            "y": 2,
            "source": "googlemaps",
            "flight_id": None,
            "latitude": 0,
            "longitude": 0,
            "tile_size_meters": 1,
            "tile_size_pixels": 256,
            "file_path": "3/1/2.jpg",
            "captured_at": "2026-01-01 00:00+00",
            "tile_uuid": uuid4(),
            "location_hash": uuid4(),
            **columns,
        }
        values = ", ".join(["%s"] * len(tile))
        self.query(f"INSERT INTO tiles ({', '.join(tile)}) VALUES ({values})", *tile.values())

    def upgrade_to(self, revision: str) -> None:
        """Upgrades the schema to any revision."""
        run_alembic(find_migrations(), "upgrade", revision, lambda: connect(self.dsn))

    @contextmanager
    def holding(self, statement: str) -> Iterator[None]:
        """Holds the locks of a statement."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(SQL(statement))
            yield

    def wait_until(self, condition: str) -> None:
        """Waits until an SQL expression is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.query(f"SELECT {condition}, pg_sleep(0.01)")[0][0] is not True:
            assert time.monotonic() < deadline, f"still not true: {condition}"

    def wait_for_waiting_sessions(self, count: int) -> None:
        """Waits until `count` sessions of this database wait for a lock."""
        self.wait_until(f"(SELECT count(*) = {count} FROM ({WAITING_SESSIONS}) AS waiting)")


WAITING_SESSIONS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
