"""Sectors that are polygons, and dry runs of sectors and rules: one definition, wherever labels
are given."""

import random
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
import shapely
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.admin import (
    ACTIVE_CONFLICT,
    DOWNGRADE,
    REJECT,
    STABLE_REAR,
    explain,
    read_label,
    reevaluate,
    set_polygon_sector,
    set_rule,
    set_sector,
)
from tests.tiles import (
    NOW,
    TIMEOUT_S,
    Block,
    bulk_insert,
    polygon_region,
    store_row,
    tile,
    tile_key,
    timestamp,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_centre
from tilecache.v1.tile_cache_admin_pb2 import (
    DeleteSectorRequest,
    FreshnessRule,
    ListFreshnessRulesRequest,
    ListSectorsRequest,
    Sector,
    SetFreshnessRuleRequest,
    SetSectorRequest,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_FRESH,
    DescribeCoverageRequest,
    FreshnessLabel,
    Region,
)
from tilecache_daemon.freshness_policy import add_months
from tilecache_daemon.geometry.polygon import Polygon

OLD = add_months(NOW, -13)
Position = tuple[float, float]


def star(chance: random.Random, latitude: float, longitude: float) -> list[Position]:
    """A ring around a centre that is not convex."""
    return [
        (latitude + radius * sine, (longitude + radius * cosine + 180) % 360 - 180)
        for sine, cosine in (
            (0, 1),
            (0.7, 0.7),
            (1, 0),
            (0.7, -0.7),
            (0, -1),
            (-0.7, -0.7),
            (-1, 0),
        )
        for radius in (chance.uniform(2, 9),)
    ]


@pytest.mark.parametrize("longitude", [30.0, 179.5, -179.5])
def test_labels_are_the_same_at_insert_afterwards_and_in_explanations(
    admin: TileCacheClient, sql: psycopg.Connection[Any], longitude: float
) -> None:
    ring = star(random.Random(3), 48.0, longitude)
    hole = [(48.2, longitude), (48.2, longitude + 0.4), (48.5, longitude + 0.4)]
    region = polygon_region(ring, hole)
    set_polygon_sector(admin, "rear", STABLE_REAR, region)
    plain = shapely.Polygon(
        [
            (x if abs(x - longitude) < 180 else x + 360 * (1 if longitude > 0 else -1), y)
            for y, x in ring
        ],
        [[(x, y) for y, x in hole]],
    )
    columns, rows = range(-16, 17), range(-16, 17)
    x, y = 2**8 * (longitude + 180) // 360, 88
    keys = [tile_key(8, int(x + column) % 256, int(y + row)) for column in columns for row in rows]
    inserted, aged = keys[::2], keys[1::2]

    bulk_insert(admin, [tile(key, captured_at=OLD) for key in inserted])
    for key in aged:
        store_row(sql, key, captured_at=OLD)
    at_insert = {key.SerializeToString(): read_label(admin, key) for key in inserted}
    reevaluate(admin)

    downgraded = 0
    for key in keys:
        latitude, centre = cell_centre(8, key.x, key.y)
        near = min((centre, centre + 360, centre - 360), key=lambda each: abs(each - longitude))
        expected = "downgraded" if plain.contains(shapely.Point(near, latitude)) else "fresh"
        downgraded += expected == "downgraded"
        assert at_insert.get(key.SerializeToString(), expected) == expected
        assert read_label(admin, key) == expected
        found = explain(admin, key)
        assert FreshnessLabel.Name(found.current_label).endswith(expected.upper())
        assert found.HasField("sector") == (expected == "downgraded")
    assert 20 < downgraded < len(keys) - 20
    whole = DescribeCoverageRequest(zoom=8, region=region, at=timestamp(NOW))
    then = next(iter(admin.store.DescribeCoverage(whole, timeout=TIMEOUT_S))).summary
    stored = DescribeCoverageRequest(zoom=8, region=region)
    assert then == next(iter(admin.store.DescribeCoverage(stored, timeout=TIMEOUT_S))).summary


def test_a_polygon_of_a_boxes_corners_has_the_same_tiles_edges_included(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    """The centres of cells of low zooms lie on edges such as 22.5 degrees."""
    keys = [tile_key(3, x, y) for x in range(8) for y in range(8)]
    centres = {key.y: cell_centre(3, 0, key.y)[0] for key in keys}
    south, north = centres[5], centres[2]
    for west, east in ((22.5, 112.5), (157.5, -157.5), (-180.0, -67.5)):
        box = (south, west, north, east)
        corners = [(south, west), (south, east), (north, east), (north, west)]
        labels = []
        for shape in ("box", "polygon"):
            sql.execute("TRUNCATE tiles")
            if shape == "box":
                set_sector(admin, "s", STABLE_REAR, box)
            else:
                set_polygon_sector(admin, "s", STABLE_REAR, polygon_region(corners))
            bulk_insert(admin, [tile(key, captured_at=OLD) for key in keys])
            at_insert = [read_label(admin, key) for key in keys]
            sql.execute("UPDATE tiles SET freshness_status = 'fresh'")
            reevaluate(admin)
            assert [read_label(admin, key) for key in keys] == at_insert, shape
            labels.append(at_insert)
        assert labels[0] == labels[1]
        assert labels[0].count("downgraded") >= 8


# Numbers that a polygon takes for 0 make rings touch themselves.
coordinates = st.floats(-10, 10).filter(lambda degrees: not 0 < abs(degrees) < 1e-100)


@example([(0.0, 3.0), (1.0, 0.0), (1e-308, 1.0)], 0.5, 0.5)  # The slope of an edge is infinite.
@given(
    st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8), coordinates, coordinates
)
def test_a_polygon_contains_what_an_independent_one_does(
    ring: list[Position], latitude: float, longitude: float
) -> None:
    plain = shapely.Polygon([(x, y) for y, x in ring])
    assume(plain.is_valid and plain.area > 1e-6)
    point = shapely.Point(longitude, latitude)
    assume(plain.boundary.distance(point) > 1e-9)

    assert Polygon(ring).contains(latitude, longitude) == plain.contains(point)


def test_a_polygon_is_listed_as_it_was_given_with_its_box(admin: TileCacheClient) -> None:
    region = polygon_region([(-20, 176), (-20, -178), (-15, -178), (-15, 176), (-20, 176)])
    answer = set_polygon_sector(admin, "fiji", STABLE_REAR, region)
    (sector,) = admin.admin.ListSectors(ListSectorsRequest(), timeout=TIMEOUT_S).sectors

    assert sector == answer.sector
    assert sector.polygon == region.polygon
    box = sector.bounding_box
    assert (box.south, box.west, box.north, box.east) == (-20, 176, -15, -178)

    # A sector that was listed may be set as it is; one with a box alone is no polygon any more.
    again = admin.admin.SetSector(SetSectorRequest(sector=sector), timeout=TIMEOUT_S)
    assert again.sector == sector
    set_sector(admin, "fiji", STABLE_REAR, (0, 0, 1, 1))
    (sector,) = admin.admin.ListSectors(ListSectorsRequest(), timeout=TIMEOUT_S).sectors
    assert not sector.HasField("polygon")


@pytest.mark.parametrize(
    ("region", "field"),
    [
        (polygon_region([(0, 0), (0, 1)]), "sector.polygon.outer"),
        (polygon_region([(0, 0), (1, 1), (1, 0), (0, 1)]), "sector.polygon.outer"),
        (polygon_region([(0, 0), (0, 181), (1, 1)]), "sector.polygon.outer.points[1].longitude"),
        (polygon_region([(0, x / 9) for x in range(1_001)]), "sector.polygon"),
        (
            polygon_region(
                [(0, -180), (0, -90), (0, 0), (0, 90), (0, 180), (9, 90), (9, 0), (9, -90)]
            ),
            "sector.polygon",
        ),
    ],
)
def test_an_invalid_polygon_is_refused(admin: TileCacheClient, region: Region, field: str) -> None:
    with pytest.raises(CallError) as refusal:
        set_polygon_sector(admin, "x", STABLE_REAR, region)
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refusal.value.violations] == [field]


def pairs(counts: Any) -> list[tuple[int, int, int, int]]:
    return [
        (each.old_label, each.new_label, each.tile_count, each.recently_used_count)
        for each in counts
    ]


def test_a_dry_run_of_a_sector_says_how_many_tiles_get_which_label(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    bulk_insert(admin, [tile(key, captured_at=OLD) for key in block.keys(10)])
    sql.execute(
        "UPDATE tiles SET accessed_at = CASE WHEN x %% 2 = 0 THEN %s ELSE %s END WHERE x < %s",
        [NOW - timedelta(days=6), NOW - timedelta(days=8), block.x + 6],
    )
    sector = Sector(name="all", classification=STABLE_REAR)
    sector.bounding_box.CopyFrom(
        set_sector(admin, "all", ACTIVE_CONFLICT, (0, 0, 1, 1)).sector.bounding_box
    )
    sector.bounding_box.south, sector.bounding_box.west = -90, -180
    sector.bounding_box.north, sector.bounding_box.east = 90, 180

    tried = admin.admin.SetSector(SetSectorRequest(sector=sector, dry_run=True), timeout=TIMEOUT_S)

    assert pairs(tried.relabelled) == [(FRESHNESS_LABEL_FRESH, FRESHNESS_LABEL_DOWNGRADED, 10, 3)]
    assert tried.relabelled_count == 10
    assert tried.sector.bounding_box == sector.bounding_box
    (listed,) = admin.admin.ListSectors(ListSectorsRequest(), timeout=TIMEOUT_S).sectors
    assert listed.classification == ACTIVE_CONFLICT
    assert {read_label(admin, key) for key in block.keys(10)} == {"fresh"}
    done = admin.admin.SetSector(SetSectorRequest(sector=sector), timeout=TIMEOUT_S)
    assert (done.relabelled_count, list(done.relabelled)) == (10, [])


def test_a_dry_run_of_a_rule_says_how_many_tiles_get_which_label(
    admin: TileCacheClient, block: Block
) -> None:
    set_sector(admin, "all", STABLE_REAR, (-90, -180, 90, 180))
    bulk_insert(
        admin,
        [tile(block.key(column), captured_at=add_months(NOW, -column)) for column in range(15)],
    )
    before = admin.admin.ListFreshnessRules(ListFreshnessRulesRequest(), timeout=TIMEOUT_S)
    rule = FreshnessRule(classification=STABLE_REAR, max_age_months=8, action=REJECT)

    tried = admin.admin.SetFreshnessRule(
        SetFreshnessRuleRequest(rule=rule, dry_run=True), timeout=TIMEOUT_S
    )

    labels = {(old, new): count for old, new, count, _ in pairs(tried.relabelled)}
    assert sum(labels.values()) == tried.relabelled_count == 7
    assert sorted(labels.values()) == [3, 4]
    assert before == admin.admin.ListFreshnessRules(ListFreshnessRulesRequest(), timeout=TIMEOUT_S)
    assert set_rule(admin, STABLE_REAR, 8, REJECT).relabelled_count == 7
    with pytest.raises(CallError, match="less than or equal"):
        admin.admin.SetFreshnessRule(
            SetFreshnessRuleRequest(
                rule=FreshnessRule(
                    classification=ACTIVE_CONFLICT, max_age_months=9, action=DOWNGRADE
                ),
                dry_run=True,
            ),
            timeout=TIMEOUT_S,
        )


def test_a_dry_run_of_many_tiles_counts_each_once(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        """INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,
                              tile_size_meters, tile_size_pixels, file_path, captured_at)
           SELECT gen_random_uuid(), gen_random_uuid(), 18, n % 1000, n / 1000, 'googlemaps', 10,
                  10, 1, 256, 'a.jpg', now() - interval '14 months'
           FROM generate_series(1, 25000) AS n"""
    )
    sector = Sector(name="s", classification=STABLE_REAR)
    sector.bounding_box.north = sector.bounding_box.east = 20

    tried = admin.admin.SetSector(SetSectorRequest(sector=sector, dry_run=True), timeout=TIMEOUT_S)

    assert pairs(tried.relabelled) == [
        (FRESHNESS_LABEL_FRESH, FRESHNESS_LABEL_DOWNGRADED, 25_000, 0)
    ]
    with pytest.raises(CallError):
        admin.admin.DeleteSector(DeleteSectorRequest(name="s"), timeout=TIMEOUT_S)
