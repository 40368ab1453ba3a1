"""A client that runs until it is killed. Arguments: `bulk` or `query`, a socket, a number.

Its first line of output is the number of acknowledged batches when it may be killed.
"""

import sys
import time
from collections.abc import Iterator
from itertools import count

from tests.tiles import cell_region, tile, tile_key
from tests.waiting import PATIENCE_S
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import BulkInsertTilesRequest, QueryTilesRequest

ZOOM = 17
BATCH_TILES = 100
ANSWERS = 3
"""Batches that are acknowledged before the client may be killed."""


def main(kind: str, socket_path: str, number: str) -> None:
    run = insert_for_ever if kind == "bulk" else query_and_stop
    with TileCacheClient(socket_path) as client:
        while True:
            try:
                run(client, int(number))
            except CallError as error:
                # Other clients may be at the concurrency limit.
                if error.retry_after_s is None:
                    raise
                time.sleep(error.retry_after_s)


def insert_for_ever(client: TileCacheClient, number: int) -> None:
    for answered, _ in enumerate(client.store.BulkInsertTiles(batches(number)), start=1):
        if answered == ANSWERS:
            print(answered, flush=True)


def query_and_stop(client: TileCacheClient, number: int) -> None:
    """Reads the first of several messages of an answer and stops."""
    first = batches(number)
    list(client.store.BulkInsertTiles(next(first) for _ in range(ANSWERS)))
    region = cell_region(0, (number + 1) * BATCH_TILES, 0, ANSWERS)
    answers = client.store.QueryTiles(QueryTilesRequest(zoom=ZOOM, region=region))
    next(answers)
    print(ANSWERS, flush=True)
    time.sleep(PATIENCE_S)  # until it is killed


def batches(number: int) -> Iterator[BulkInsertTilesRequest]:
    for row in count():
        keys = (tile_key(ZOOM, number * BATCH_TILES + x, row) for x in range(BATCH_TILES))
        yield BulkInsertTilesRequest(
            tiles=[tile(key, file_path=f"{'x' * 400}/{key.x}/{key.y}.jpg") for key in keys]
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
