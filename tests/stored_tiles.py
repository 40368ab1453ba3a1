"""The tiles that a daemon stores, read with gRPC calls."""

from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import (
    CellRange,
    DescribeCoverageRequest,
    FreshnessLabel,
    QueryTilesRequest,
    Region,
    TileMetadata,
)

ANSWER_TIMEOUT_S = 60.0


def list_stored(client: TileCacheClient, zooms: range) -> list[TileMetadata]:
    """All tiles of these zooms, with any label."""
    labels = [label for label in FreshnessLabel.values() if label]
    return [
        tile
        for zoom in zooms
        for answer in client.store.QueryTiles(
            QueryTilesRequest(zoom=zoom, region=whole_zoom(zoom), labels=labels),
            timeout=ANSWER_TIMEOUT_S,
        )
        for tile in answer.tiles
    ]


def count_covered(client: TileCacheClient, zoom: int) -> int:
    """The number of cells of a zoom that have a tile."""
    request = DescribeCoverageRequest(zoom=zoom, region=whole_zoom(zoom))
    first, *_ = client.store.DescribeCoverage(request, timeout=ANSWER_TIMEOUT_S)
    return int(first.summary.covered_count)


def whole_zoom(zoom: int) -> Region:
    last = (1 << zoom) - 1
    return Region(cell_range=CellRange(x_from=0, x_to=last, y_from=0, y_to=last))
