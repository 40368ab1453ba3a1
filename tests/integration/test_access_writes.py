"""Many accesses are written in several batches, in the order of use."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import Block, bulk_insert, tile, tile_uuid
from tests.waiting import eventually
from tilecache.v1.tile_metadata_store_pb2 import TileRef, TouchTilesRequest

SEVERAL_BATCHES = 900
NEVER_S = 3_600


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[DaemonProcess]:
    """A daemon that writes accesses at once."""
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=0.05) as process:
        yield process


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def stored(daemon: DaemonProcess, block: Block) -> list[str]:
    """Ids of more tiles than one batch of accesses."""
    return store(daemon, block, SEVERAL_BATCHES)


def store(daemon: DaemonProcess, block: Block, count: int) -> list[str]:
    keys = list(block.keys(100, count // 100))
    bulk_insert(daemon.client, [tile(key) for key in keys])
    return [tile_uuid(key) for key in keys]


def use(daemon: DaemonProcess, tile_uuids: Sequence[str]) -> None:
    """Records accesses of tiles in one call, in order."""
    refs = [TileRef(tile_uuid=text) for text in tile_uuids]
    daemon.client.store.TouchTiles(TouchTilesRequest(tiles=refs), timeout=60)


def write_the_first_batch(
    daemon: DaemonProcess, sql: psycopg.Connection[Any], tile_uuids: Sequence[str]
) -> None:
    """Records accesses; writing them fails after the first batch, as if the disk were full."""
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM tiles WHERE accessed_at IS NOT NULL) THEN"
        " RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END IF; RETURN NULL; END $$"
    )
    sql.execute(
        "CREATE TRIGGER refused BEFORE UPDATE ON tiles FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
    use(daemon, tile_uuids)
    eventually(lambda: "accesses_not_written" in daemon.log)


def count_written(sql: psycopg.Connection[Any]) -> int:
    ((count,),) = sql.execute("SELECT count(accessed_at) FROM tiles")
    return int(count)


def count_pages(sql: psycopg.Connection[Any]) -> int:
    ((count,),) = sql.execute("SELECT pg_relation_size('tiles') / 8192")
    return int(count)


def by_last_use(sql: psycopg.Connection[Any]) -> list[str]:
    rows = sql.execute("SELECT tile_uuid::text FROM tiles ORDER BY access_order")
    return [text for (text,) in rows]


def test_a_failed_write_is_completed_in_the_order_of_use(
    daemon: DaemonProcess, sql: psycopg.Connection[Any], stored: list[str]
) -> None:
    write_the_first_batch(daemon, sql, stored)
    assert 0 < count_written(sql) < SEVERAL_BATCHES
    sql.execute("DROP TRIGGER refused ON tiles")
    eventually(lambda: count_written(sql) == SEVERAL_BATCHES)
    assert by_last_use(sql) == stored


def test_accesses_of_locked_tiles_are_written_later_in_the_order_of_use(
    daemon: DaemonProcess, sql: psycopg.Connection[Any], stored: list[str]
) -> None:
    locked = stored[600:700]
    with sql.transaction():
        sql.execute("SELECT FROM tiles WHERE tile_uuid = ANY(%s::uuid[]) FOR UPDATE", [locked])
        use(daemon, stored)
        eventually(lambda: count_written(sql) == SEVERAL_BATCHES - len(locked))
    eventually(lambda: count_written(sql) == SEVERAL_BATCHES)
    assert by_last_use(sql) == stored[:600] + stored[700:] + locked


def test_a_later_access_of_another_writer_is_kept(
    daemon: DaemonProcess, sql: psycopg.Connection[Any], stored: list[str]
) -> None:
    write_the_first_batch(daemon, sql, stored)
    with sql.transaction():
        sql.execute("DROP TRIGGER refused ON tiles")
        (later,) = sql.execute(
            "UPDATE tiles SET accessed_at = now(), access_order = nextval('tile_access_order_seq')"
            " WHERE id = (SELECT min(id) FROM tiles WHERE accessed_at IS NULL)"
            " RETURNING tile_uuid::text, accessed_at, access_order"
        )
    eventually(lambda: count_written(sql) == SEVERAL_BATCHES)
    assert (
        sql.execute(
            "SELECT tile_uuid::text, accessed_at, access_order FROM tiles"
            " ORDER BY access_order DESC LIMIT 1"
        ).fetchone()
        == later
    )


def test_writing_accesses_of_all_tiles_hardly_grows_the_table(
    database: str, short_directory: Path, sql: psycopg.Connection[Any], block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=NEVER_S) as daemon:
        stored = store(daemon, block, 5_000)
        before = count_pages(sql)
        for start in range(0, len(stored), 1_000):
            use(daemon, stored[start : start + 1_000])
        assert daemon.stop() == 0
    assert count_written(sql) == len(stored)
    assert count_pages(sql) < 1.3 * before
