"""What is chosen on one state is checked again where it is acted on."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.sql import SQL

from tests.admin import ACTIVE_CONFLICT, evict, read_label, set_sector
from tests.tiles import (
    FLIGHT,
    NOW,
    ONBOARD,
    TIMEOUT_S,
    Block,
    insert,
    is_stored,
    tile,
    tile_uuid,
    waiting_for_locks,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.mercator import cell_centre
from tilecache_daemon.models import EvictionReason
from tilecache_daemon.store.database import Database
from tilecache_daemon.store.evictions import EvictionQueries
from tilecache_daemon.store.sql import load_queries


def box_around(block: Block) -> tuple[float, float, float, float]:
    latitude, longitude = cell_centre(block.zoom, block.x, block.y)
    return latitude - 0.1, longitude - 0.1, latitude + 0.1, longitude + 0.1


async def test_a_tile_that_waits_for_upload_again_when_it_is_evicted_stays(
    admin: TileCacheClient, sql: psycopg.Connection[Any], shared_database: str, block: Block
) -> None:
    key = block.key(source=ONBOARD, flight_id=FLIGHT)
    insert(admin, tile(key))
    sql.execute("UPDATE tiles SET uploaded_at = now()")
    database = Database(
        shared_database, min_size=1, max_size=1, timeout_s=5, statement_timeout_s=30
    )
    await database.open()
    try:
        async with database.transaction() as connection:
            queries = EvictionQueries(connection)
            chosen = await queries.list_evictable(
                (0, 0), 10, include_pending=False, include_pinned=False
            )
            sql.execute("UPDATE tiles SET uploaded_at = NULL")
            gone = await queries.evict_tiles(
                chosen, EvictionReason.EVICTED, NOW, include_pending=False, include_pinned=False
            )
    finally:
        await database.close()

    assert [candidate.tile.tile_uuid for candidate in chosen] == [tile_uuid(key)]
    assert gone == []
    assert is_stored(admin, key)


def test_a_tile_that_is_replaced_while_it_is_relabelled_keeps_its_new_label(
    admin: TileCacheClient, sql: psycopg.Connection[Any], shared_database: str, block: Block
) -> None:
    key = block.key()
    insert(admin, tile(key, captured_at=NOW - timedelta(days=400)))
    with psycopg.connect(shared_database) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute("UPDATE tiles SET captured_at = now()")
        change = threads.submit(set_sector, admin, "north", ACTIVE_CONFLICT, box_around(block))
        eventually(lambda: waiting_for_locks(shared_database))
        writer.commit()
        assert change.result(TIMEOUT_S).relabelled_count == 0

    assert read_label(admin, key) == "fresh"


def test_a_sector_is_answered_as_set_though_relabelling_fails(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    """The sector is committed before; the labels follow when they can."""
    key = block.key()
    insert(admin, tile(key, captured_at=NOW - timedelta(days=400)))
    sql.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION USING ERRCODE = 'deadlock_detected'; END $$
    """)
    sql.execute("""
        CREATE TRIGGER refuse BEFORE UPDATE OF freshness_status ON tiles
        FOR EACH ROW EXECUTE FUNCTION refuse()
    """)
    try:
        answer = set_sector(admin, "north", ACTIVE_CONFLICT, box_around(block))
        assert answer.sector.name == "north"
        assert answer.relabelled_count == 0
        assert read_label(admin, key) == "fresh"
    finally:
        sql.execute("DROP FUNCTION refuse CASCADE")
    eventually(lambda: read_label(admin, key) == "rejected")


def test_an_eviction_passes_over_pending_tiles_by_an_index(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    """They are the least recently used on a long flight; passing over each anew would cost time."""
    for column in range(3):
        insert(admin, tile(block.key(column, source=ONBOARD, flight_id=FLIGHT)))
    insert(admin, tile(block.key(10)))

    went = evict(admin, free_bytes=1)

    assert [each.key.x for each in went.tiles] == [block.x + 10]
    statement = "EXPLAIN " + load_queries("evictions")["list_evictable"]
    parameters = {"after_order": 0, "after_id": 0, "limit": 1, "include_pinned": False}
    plan = "\n".join(row[0] for row in sql.execute(SQL(statement), parameters))
    assert "idx_tiles_evictable" in plan
