"""A process that follows cells with a replica, for the benchmark.

`python -m tests.benchmarks.follower SOCKET X_FROM X_TO Y_FROM Y_TO`: prints a line once it is
synced, and after each line of the input the bytes that the replica added to its memory and the
number of its tiles; ends with the input.
"""

import gc
import os
import sys

from tests.benchmarks.stage import resident_bytes, settle
from tests.benchmarks.tiles import ZOOM
from tests.tiles import cell_region
from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest, WatchedArea

SYNC_S = 120.0


def main(socket_path: str, *cells: int) -> None:
    """Follows until the input ends."""
    with TileCacheClient(socket_path) as client:
        # What any client takes is not the replica's.
        client.store.GetServerInfo(GetServerInfoRequest(), timeout=SYNC_S)
        before = resident_bytes(os.getpid())
        with client.replica() as replica:
            replica.follow_areas([WatchedArea(zoom=ZOOM, region=cell_region(*cells))])
            replica.wait_until_synced(SYNC_S)

            sys.stdout.write("synced\n")
            sys.stdout.flush()
            for _ in sys.stdin:
                gc.collect()
                taken = settle(os.getpid()) - before
                sys.stdout.write(f"{taken} {replica.status.tiles}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
