"""Bulk insertion of rows with SQL, faster than by any client."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

FILL = """
    INSERT INTO tiles (
        zoom, x, y, source, latitude, longitude, tile_size_meters, tile_size_pixels, file_path,
        captured_at, created_at, tile_uuid, location_hash, content_sha256, disk_bytes
    )
    SELECT 20, n %% 1024, n / 1024, %(source)s, 50.0, 30.0, 20.0, 256, '20/' || n || '.jpg',
           now() - interval '1 day', now(), md5(n || %(source)s)::uuid, md5(n::text)::uuid,
           repeat(md5(n::text), 2), %(disk_bytes)s
    FROM generate_series(0, %(count)s - 1) AS n
"""


def fill(
    sql: psycopg.Connection[Any], count: int, *, disk_bytes: int, source: str = "googlemaps"
) -> None:
    """Inserts tiles of zoom 20 with different files; the first is the least recently used."""
    sql.execute(FILL, {"count": count, "disk_bytes": disk_bytes, "source": source})


def fill_without_upkeep(sql: psycopg.Connection[Any], count: int, *, disk_bytes: int) -> None:
    """As `fill`, for millions."""
    with without_upkeep(sql):
        fill(sql, count, disk_bytes=disk_bytes)
    sql.execute("ANALYZE tiles")


@contextmanager
def without_upkeep(sql: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction that stores tiles without triggers; creates the indexes and counts the usage
    once, at its end."""
    indexes = sql.execute(
        "SELECT indexname, indexdef FROM pg_indexes "
        "WHERE tablename = 'tiles' AND indexname LIKE 'idx_%%'"
    ).fetchall()
    with sql.transaction():
        for name, _ in indexes:
            sql.execute(SQL("DROP INDEX {}").format(Identifier(name)))
        sql.execute("ALTER TABLE tiles DISABLE TRIGGER USER")
        yield
        sql.execute("ALTER TABLE tiles ENABLE TRIGGER USER")
        sql.execute("DELETE FROM tile_usage")
        sql.execute(
            "INSERT INTO tile_usage SELECT zoom, source, freshness_status, false, count(*), "
            "sum(disk_bytes), 0 FROM tiles GROUP BY zoom, source, freshness_status"
        )
        for _, definition in indexes:
            sql.execute(definition)
