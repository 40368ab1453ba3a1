"""Many rows at once, as no client could send them."""

from typing import Any

import psycopg

FILL = """
    INSERT INTO tiles (
        zoom, x, y, source, latitude, longitude, tile_size_meters, tile_size_pixels, file_path,
        captured_at, created_at, tile_uuid, location_hash, content_sha256, disk_bytes
    )
    SELECT 20, n %% 1024, n / 1024, %(source)s, 50.0, 30.0, 20.0, 256, '20/' || n || '.jpg',
           now() - interval '1 day', now(), md5(n || %(source)s)::uuid, md5(n::text)::uuid,
           repeat(md5(n::text), 2), %(disk_bytes)s
    FROM generate_series(0, %(count)s - 1) AS n
"""


def fill(
    sql: psycopg.Connection[Any], count: int, *, disk_bytes: int, source: str = "googlemaps"
) -> None:
    """Tiles of zoom 20, each with a file of its own; the first is the least recently used."""
    sql.execute(FILL, {"count": count, "disk_bytes": disk_bytes, "source": source})
