"""Two daemons, and what both hold."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.admin import empty_database
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.tiles import TIMEOUT_S, bulk_insert, tile
from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM
from tilecache.v1.tile_identity_pb2 import TileKey
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
    """Empties some databases."""
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as sql:
            empty_database(sql)


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


def sync(
    into: DaemonProcess, other: DaemonProcess, *options: object
) -> "subprocess.CompletedProcess[str]":
    """Runs the command on the daemon that fetches."""
    return run_tilecache(
        "sync", "--from", other.socket_path, *options, socket_path=into.socket_path
    )


def summary_of(run: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The last line of `--json`."""
    summary: dict[str, Any] = lines_of(run)[-1]
    assert summary["kind"] == "summary"
    return summary


def lines_of(run: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """The lines of `--json`."""
    assert run.stdout, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def put(folder: Path, path: str, content: str) -> None:
    """Writes a file."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)


def store_with_files(
    client: TileCacheClient, folder: Path, keys: Sequence[TileKey], **fields: Any
) -> list[TileMetadata]:
    """Stores tiles with a content and a file of their own."""
    tiles = []
    for key in keys:
        content = f"{key.x}/{key.y}/{fields}"
        path = f"{key.zoom}/{key.x}/{key.y}.jpg"
        put(folder, path, content)
        tiles.append(tile(key, content, disk_bytes=len(content), **fields))
    bulk_insert(client, tiles)
    return tiles
