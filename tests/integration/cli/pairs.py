"""Two daemons, and what both hold."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.daemon_process import DaemonProcess
from tests.tiles import TIMEOUT_S
from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM
from tilecache.v1.tile_metadata_store_pb2 import (
    DescribeBlocksRequest,
    ListTilesRequest,
    TileMetadata,
)

Digests = dict[tuple[int, int, int], tuple[int, bytes]]


class Pair(NamedTuple):
    """The daemon that fetches, and the one that it fetches from."""

    here: DaemonProcess
    there: DaemonProcess
    here_tiles: Path
    """Their tiles directories, of which only the first is configured."""
    there_tiles: Path

    @property
    def equal(self) -> bool:
        """Whether both have the same digests."""
        return digests(self.here.client) == digests(self.there.client)


@contextmanager
def running_pair(here_dsn: str, there_dsn: str, **there_settings: Any) -> Iterator[Pair]:
    """Two ready daemons, each with a database of its own."""
    with tempfile.TemporaryDirectory(prefix="tilecache-") as name:
        folders = [Path(name, side) for side in ("h", "t", "ht", "tt")]
        for folder in folders:
            folder.mkdir()
        here, there, here_tiles, there_tiles = folders
        with (
            DaemonProcess(here, dsn=here_dsn, tiles_directory=here_tiles) as one,
            DaemonProcess(there, dsn=there_dsn, **there_settings) as other,
        ):
            yield Pair(one, other, here_tiles, there_tiles)


def empty(*dsns: str) -> None:
    """Deletes all tiles, evictions and sectors of some databases."""
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as sql:
            sql.execute("TRUNCATE tiles, tile_evictions, sector_classifications")


def digests(client: TileCacheClient) -> Digests:
    """Number of tiles and digest of each block, of all zooms."""
    return {
        (zoom, block.block_x, block.block_y): (block.tile_count, block.digest)
        for zoom in range(MAX_ZOOM + 1)
        for answer in client.store.DescribeBlocks(
            DescribeBlocksRequest(zoom=zoom), timeout=TIMEOUT_S
        )
        for block in answer.blocks
    }


def stored(client: TileCacheClient, **wanted: Any) -> dict[str, TileMetadata]:
    """The tiles that pass a filter, by id."""
    request = ListTilesRequest(**wanted)
    tiles: dict[str, TileMetadata] = {}
    while True:
        page = client.store.ListTiles(request, timeout=TIMEOUT_S)
        tiles |= {tile.tile_uuid: tile for tile in page.tiles}
        request.page_token = page.next_page_token
        if not request.page_token:
            return tiles
