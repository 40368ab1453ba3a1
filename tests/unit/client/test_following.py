"""Which circle is followed around the one that is needed."""

import pytest

from tilecache.following import blocks_of_areas, circle_to_follow
from tilecache.v1.tile_metadata_store_pb2 import BoundingBox, CellRange, Region, WatchedArea
from tilecache_daemon.models import Limits

EVERYWHERE = {
    "a circle": circle_to_follow(0, 0, Limits().max_radius_meters, (22,), (0.0, 0.0))
    .areas[0]
    .region,
    "a box": Region(bounding_box=BoundingBox(south=-90, west=-180, north=90, east=180)),
    "cells": Region(cell_range=CellRange(x_to=2**22 - 1, y_to=2**22 - 1)),
}


def test_no_circle_is_larger_than_the_daemon_takes() -> None:
    most = Limits().max_radius_meters

    assert circle_to_follow(0, 0, most, (0,), (0.0, 0.0)).reach_meters == most
    assert circle_to_follow(0, 0, 0.9 * most, (0,), (90.0, 0.0)).reach_meters == most


@pytest.mark.parametrize("region", EVERYWHERE.values(), ids=EVERYWHERE)
def test_areas_far_beyond_any_limit_are_refused_before_they_are_listed(region: Region) -> None:
    with pytest.raises(ValueError, match="cover more than"):
        blocks_of_areas([WatchedArea(zoom=22, region=region)])
