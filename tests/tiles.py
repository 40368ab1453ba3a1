"""Valid tiles derived from their keys, and helpers that send them."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any
from uuid import uuid4

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier

from tilecache.client import TileCacheClient
from tilecache.identity import SOURCE_TEXTS, derive_location_hash, derive_tile_id
from tilecache.mercator import cell_centre
from tilecache.v1.tile_identity_pb2 import (
    TILE_SOURCE_GOOGLEMAPS,
    TILE_SOURCE_ONBOARD_INGEST,
    TileKey,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    BoundingBox,
    BulkInsertTilesRequest,
    BulkInsertTilesResponse,
    CellRange,
    Circle,
    Corridor,
    InsertTileRequest,
    InsertTileResponse,
    LatLng,
    LookupTilesRequest,
    Polygon,
    Region,
    RegionUnion,
    Ring,
    TileMetadata,
    TileRef,
)

Position = tuple[float, float]
"""Latitude and longitude."""
GOOGLEMAPS = TILE_SOURCE_GOOGLEMAPS
ONBOARD = TILE_SOURCE_ONBOARD_INGEST
FLIGHT = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
NOW = datetime.now(timezone.utc)
YESTERDAY = NOW - timedelta(days=1)
ZOOM = 18
TIMEOUT_S = 60

_columns = count(1_024, 128)


class Block:
    """Cells of zoom 18, 100 by 100, that no other test of the process uses. They share no block
    of the cache with those of another test."""

    zoom = ZOOM

    def __init__(self) -> None:
        self.x = next(_columns)
        self.y = 95_008

    def key(
        self, column: int = 0, row: int = 0, source: Any = GOOGLEMAPS, flight_id: str | None = None
    ) -> TileKey:
        """The key of one of the cells."""
        return tile_key(self.zoom, self.x + column, self.y + row, source, flight_id)

    def keys(self, columns: int, rows: int = 1) -> Iterator[TileKey]:
        """Keys of the first columns and rows."""
        for row in range(rows):
            for column in range(columns):
                yield self.key(column, row)

    @property
    def region(self) -> Region:
        """The region of all cells."""
        return cell_region(self.x, self.x + 99, self.y, self.y + 99)


def tile_key(
    zoom: int, x: int, y: int, source: Any = GOOGLEMAPS, flight_id: str | None = None
) -> TileKey:
    """A key as a message."""
    return TileKey(zoom=zoom, x=x, y=y, source=source, flight_id=flight_id)


def key_name(key: TileKey) -> tuple[int, int, int, int, str]:
    """A key as a tuple, which is hashable."""
    return key.zoom, key.x, key.y, key.source, key.flight_id


def tile_uuid(key: TileKey) -> str:
    """The id derived from a key."""
    flight_id = key.flight_id if key.HasField("flight_id") else None
    return str(derive_tile_id(key.zoom, key.x, key.y, SOURCE_TEXTS[key.source], flight_id))


def location_hash(key: TileKey) -> str:
    """The location hash derived from a key."""
    return str(derive_location_hash(key.zoom, key.x, key.y))


def sha256(content: str) -> str:
    """The SHA-256 of some content."""
    return hashlib.sha256(content.encode()).hexdigest()


def timestamp(moment: datetime) -> Timestamp:
    """A time as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def tile(
    key: TileKey, content: str = "picture", captured_at: datetime | None = YESTERDAY, **fields: Any
) -> TileMetadata:
    """A valid tile; fields of None are left out."""
    given: dict[str, Any] = {
        "key": key,
        "file_path": f"{key.zoom}/{key.x}/{key.y}.jpg",
        "content_sha256": sha256(content),
        "disk_bytes": 12_345,
        "captured_at": captured_at and timestamp(captured_at),
    }
    given |= fields
    return TileMetadata(**{name: value for name, value in given.items() if value is not None})


def insert(client: TileCacheClient, message: TileMetadata, on_conflict: Any = 0) -> Any:
    """Inserts one tile."""
    answer: InsertTileResponse = client.store.InsertTile(
        InsertTileRequest(tile=message, on_conflict=on_conflict), timeout=TIMEOUT_S
    )
    return answer


def bulk_insert(
    client: TileCacheClient, *batches: list[TileMetadata], on_conflict: Any = 0
) -> list[BulkInsertTilesResponse]:
    """Inserts a stream of batches; returns the acknowledgements."""
    requests = (BulkInsertTilesRequest(tiles=batch, on_conflict=on_conflict) for batch in batches)
    return list(client.store.BulkInsertTiles(requests, timeout=TIMEOUT_S))


def by_key(key: TileKey) -> TileRef:
    """A reference by natural key."""
    return TileRef(key=key)


def by_id(key: TileKey) -> TileRef:
    """A reference by id."""
    return TileRef(tile_uuid=tile_uuid(key))


def cell_region(x_from: int, x_to: int, y_from: int, y_to: int) -> Region:
    """A region by cells."""
    return Region(cell_range=CellRange(x_from=x_from, x_to=x_to, y_from=y_from, y_to=y_to))


def box_region(south: float, west: float, north: float, east: float) -> Region:
    """A region by degrees."""
    return Region(bounding_box=BoundingBox(south=south, west=west, north=north, east=east))


def circle_region(latitude: float, longitude: float, radius_meters: float) -> Region:
    """A region by distance."""
    return Region(
        circle=Circle(latitude=latitude, longitude=longitude, radius_meters=radius_meters)
    )


def corridor_region(waypoints: Sequence[Position], half_width_meters: float) -> Region:
    """A region by the distance to a route."""
    return Region(
        corridor=Corridor(waypoints=_points(waypoints), half_width_meters=half_width_meters)
    )


def polygon_region(outer: Sequence[Position], *holes: Sequence[Position]) -> Region:
    """A region by an outline."""
    return Region(
        polygon=Polygon(
            outer=Ring(points=_points(outer)),
            holes=[Ring(points=_points(hole)) for hole in holes],
        )
    )


def union_region(*regions: Region) -> Region:
    """Several regions as one."""
    return Region(union=RegionUnion(regions=regions))


def _points(positions: Sequence[Position]) -> list[LatLng]:
    return [LatLng(latitude=latitude, longitude=longitude) for latitude, longitude in positions]


def random_flight() -> str:
    """A flight that no other test uses."""
    return str(uuid4())


@st.composite
def cells(draw: st.DrawFn) -> tuple[int, int, int]:
    """Any cell of any zoom: zoom, x, y."""
    zoom = draw(st.integers(0, 22))
    side = st.integers(0, (1 << zoom) - 1)
    return zoom, draw(side), draw(side)


def store_row(sql: psycopg.Connection[Any], key: TileKey, **columns: Any) -> str:
    """Inserts a row with SQL, as other writers or earlier versions do; returns its id."""
    flight_id = key.flight_id if key.HasField("flight_id") else None
    latitude, longitude = cell_centre(key.zoom, key.x, key.y)
    row = {
        "tile_uuid": tile_uuid(key),
        "location_hash": location_hash(key),
        "zoom": key.zoom,
        "x": key.x,
        "y": key.y,
        "source": SOURCE_TEXTS[key.source],
        "flight_id": flight_id,
        "latitude": latitude,
        "longitude": longitude,
        "tile_size_meters": 100.0,
        "tile_size_pixels": 256,
        "file_path": "old.jpg",
        "captured_at": YESTERDAY,
    } | columns
    names = SQL(", ").join(map(Identifier, row))
    values = SQL(", ").join([SQL("%s")] * len(row))
    sql.execute(SQL("INSERT INTO tiles ({}) VALUES ({})").format(names, values), [*row.values()])
    return str(row["tile_uuid"])


def waiting_for_locks(dsn: str) -> int:
    """How many of the daemon's statements wait for a lock."""
    query = """SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
               AND datname = current_database() AND application_name = 'tilecache'"""
    with psycopg.connect(dsn) as connection:
        ((count,),) = connection.execute(query).fetchall()
    return int(count)


def store_tiles(
    client: TileCacheClient, block: Block, count: int, disk_bytes: int = 100
) -> list[TileKey]:
    """Stores tiles of a block; the first is the least recently used."""
    keys = [block.key(number % 100, number // 100) for number in range(count)]
    (answer,) = bulk_insert(client, [tile(key, disk_bytes=disk_bytes) for key in keys])
    assert answer.inserted_count == count
    return keys


def is_stored(client: TileCacheClient, key: TileKey) -> bool:
    """Whether a tile is stored."""
    (result,) = client.store.LookupTiles(
        LookupTilesRequest(tiles=[by_key(key)]), timeout=TIMEOUT_S
    ).results
    return result.HasField("tile")
