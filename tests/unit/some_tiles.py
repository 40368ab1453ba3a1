"""Stored tiles of every kind."""

import json
from datetime import timezone

from hypothesis import strategies as st

from tilecache.identity import SOURCE_NUMBERS
from tilecache_daemon.models import FreshnessLabel, Tile, micros_of

micros = st.datetimes(timezones=st.just(timezone.utc)).map(micros_of)
uuids = st.uuids().map(str)
tiles = st.builds(
    Tile,
    tile_uuid=uuids,
    location_hash=uuids,
    zoom=st.integers(0, 22),
    x=st.integers(0, 4194303),
    y=st.integers(0, 4194303),
    source=st.sampled_from(sorted(SOURCE_NUMBERS)),
    flight_id=st.none() | uuids,
    latitude=st.floats(-90, 90),
    longitude=st.floats(-180, 180),
    tile_size_meters=st.floats(0.001, 1e8),
    tile_size_pixels=st.integers(1, 65536),
    file_path=st.text(st.characters(exclude_categories=["Cs"])),
    content_sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    disk_bytes=st.none() | st.integers(0, 2**63 - 1),
    captured_us=micros,
    created_us=micros,
    accessed_us=st.none() | micros,
    uploaded_us=st.none() | micros,
    freshness_label=st.sampled_from([label.value for label in FreshnessLabel]),
    quality_metadata=st.none()
    | st.dictionaries(st.text("abc"), st.booleans() | st.text("xyz")).map(json.dumps),
)


def old_row() -> Tile:
    """A row as revision 0001 could hold it."""
    return Tile(
        *(
            "17f7ac7e-6c25-5050-a7cd-b6578cd5f323",
            "8d180ffb-bd42-5cb4-a4d6-628829b798b6",
            18,
            1,
            2,
            "somewhere_else",
            None,
            1.0,
            2.0,
            100.0,
            256,
            "a.jpg",
        ),
        *(None, None, 0, 0, None, None, "stale_warn", "[1, 2]"),
    )
