"""How much metadata `tilecache sync` exchanges, as a part of a full copy.

With 100,000 tiles (`TILECACHE_SYNC_TILES=98304`) it prints what docs/performance.md says.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from tests.daemon_process import run_tilecache
from tests.integration.cli.pairs import Pair, running_pair, stored
from tests.tiles import YESTERDAY, bulk_insert, tile, tile_key
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_CONVERGE,
    ListTilesResponse,
    TileMetadata,
)

BLOCKS = int(os.environ.get("TILECACHE_SYNC_TILES", "16384")) // 1_024
X, Y = 147_456, 86_016
CELLS = [(column, row) for column in range(32 * BLOCKS // 4) for row in range(128)]
"""Full blocks of zoom 18, four rows of them."""
CHANGED = len(CELLS) // 100
EDGE = int(CHANGED**0.5) + 1
AREA = [(column, row) for column in range(20, 20 + EDGE) for row in range(20, 20 + EDGE)][:CHANGED]
"""Where one flight has been."""
SCATTERED = random.Random(17).sample(CELLS, CHANGED)
MOST_OF_AREA, MOST_SCATTERED = 0.05, 0.15
BATCH = 4_096


@pytest.fixture(scope="module")
def pair(shared_database: str, second_database: str) -> Iterator[Pair]:
    """Both have the same tiles."""
    with running_pair(shared_database, second_database) as pair:
        for side in (pair.here, pair.there):
            bulk_insert(side.client, *batches(CELLS))
        assert pair.equal
        yield pair


def key(cell: tuple[int, int]) -> TileKey:
    column, row = cell
    return tile_key(18, X + column, Y + row)


def batches(cells: Sequence[tuple[int, int]]) -> Iterator[list[TileMetadata]]:
    for start in range(0, len(cells), BATCH):
        yield [tile(key(cell), str(cell)) for cell in cells[start : start + BATCH]]


@pytest.mark.parametrize(
    ("changed", "hours", "most"),
    [(AREA, 1, MOST_OF_AREA), (SCATTERED, 2, MOST_SCATTERED)],
    ids=["one flight's area", "scattered"],
)
def test_what_differs_is_exchanged_and_little_more(
    pair: Pair, changed: Sequence[tuple[int, int]], hours: int, most: float
) -> None:
    captured_at = YESTERDAY + timedelta(hours=hours)
    newer = [
        tile(key(cell), f"{cell} {hours}", captured_at, file_path=f"{hours}/{cell}.jpg")
        for cell in changed
    ]
    in_batches = (newer[start : start + BATCH] for start in range(0, len(newer), BATCH))
    bulk_insert(pair.there.client, *in_batches, on_conflict=ON_CONFLICT_CONVERGE)
    whole = ListTilesResponse(tiles=stored(pair.there.client).values()).ByteSize()

    run = run_tilecache(
        "sync", "--from", pair.there.socket_path, "--json", socket_path=pair.here.socket_path
    )

    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    assert summary["replaced_count"] == len(changed)
    assert pair.equal
    part = summary["transferred_bytes"] / whole
    print(
        f"\n{len(CELLS):,} tiles, {len(changed):,} differ, "
        f"in {summary['differing_block_count']} of {summary['block_count']} blocks: "
        f"{summary['transferred_bytes']:,} of {whole:,} bytes, {part:.2%}"
    )
    assert part < most
