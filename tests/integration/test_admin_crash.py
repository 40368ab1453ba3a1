"""Evictions that are interrupted by a crash."""

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import confirm, evict, list_evictions, read_usage
from tests.daemon_process import DaemonProcess
from tests.filling import fill
from tests.tiles import TIMEOUT_S
from tests.waiting import eventually
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest, EvictTilesRequest

TILES = 30_000
WITH_A_ROW = "SELECT file_path FROM tiles"
LISTED = "SELECT file_path FROM tile_evictions"
TERMINATE_EVICTION = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'tilecache' AND state = 'active'
      AND query LIKE '%lists their files for removal%'
"""


def files(sql: psycopg.Connection[Any], query: str) -> list[str]:
    return [path for (path,) in sql.execute(query).fetchall()]


@pytest.mark.parametrize("answers_before", [1, 4, 9])
@pytest.mark.parametrize("kind", ["evict", "delete"])
def test_a_killed_daemon_leaves_each_file_with_a_row_or_on_the_list(
    database: str, short_directory: Path, kind: str, answers_before: int
) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        fill(sql, TILES, disk_bytes=10)
        everything = sorted(files(sql, WITH_A_ROW))
        with DaemonProcess(short_directory, dsn=database) as daemon:
            admin = daemon.admin_client.admin
            answers = (
                admin.EvictTiles(EvictTilesRequest(max_used_bytes=0), timeout=TIMEOUT_S)
                if kind == "evict"
                else admin.DeleteTiles(DeleteTilesRequest(zooms=[20]), timeout=TIMEOUT_S)
            )
            reported = {
                tile.file_path for _ in range(answers_before) for tile in next(answers).tiles
            }
            daemon.kill()

            kept, listed = files(sql, WITH_A_ROW), files(sql, LISTED)
            assert kept, "the daemon was killed before the end"
            assert reported <= set(listed), "the tiles reported to the caller are listed"
            assert sorted(kept + listed) == everything, "each file has a row or is listed"

            daemon.start()
            usage = read_usage(daemon.admin_client)
            assert (usage.total.tile_count, usage.pending_removal.tile_count) == (
                len(kept),
                len(listed),
            )
            assert evict(daemon.admin_client, max_used_bytes=0).summary.goal_met
            evictions = list(list_evictions(daemon.admin_client))
            assert sorted(eviction.file_path for eviction in evictions) == everything
            for start in range(0, TILES, 4_000):
                ids = [eviction.eviction_id for eviction in evictions[start : start + 4_000]]
                assert all(confirm(daemon.admin_client, ids))
            assert read_usage(daemon.admin_client).pending_removal.tile_count == 0


def test_a_lost_database_leaves_each_file_with_a_row_or_on_the_list(
    database: str, short_directory: Path
) -> None:
    with (
        psycopg.connect(database, autocommit=True) as sql,
        DaemonProcess(short_directory, dsn=database) as daemon,
    ):
        fill(sql, TILES, disk_bytes=10)
        everything = sorted(files(sql, WITH_A_ROW))
        request = EvictTilesRequest(max_used_bytes=0)
        answers = daemon.admin_client.admin.EvictTiles(request, timeout=TIMEOUT_S)
        next(answers)
        # In the middle of a statement: an idle connection would be replaced unnoticed.
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE tile_evictions IN SHARE MODE")
            eventually(lambda: sql.execute(TERMINATE_EVICTION).fetchall())
        with pytest.raises(Exception, match="PostgreSQL") as failure:
            list(answers)

        assert failure.value.reason == "DATABASE_UNAVAILABLE"
        kept, listed = files(sql, WITH_A_ROW), files(sql, LISTED)
        assert kept
        assert listed
        assert sorted(kept + listed) == everything
