"""The query catalogue: every statement that the daemon sends, by name.

A file holds statements, each under a line `-- name --` and a line that says what
it is for. `{tile_columns}` stands for the columns of `models.Tile`, in
order, `{tile_column_arrays}` for an array of each, and `{eviction_columns}` for those
of `models.Eviction`.
"""

import re
from importlib.resources import files
from typing import Final

TILE_COLUMNS: Final = """
    t.tile_uuid::text, t.location_hash::text, t.zoom, t.x, t.y, t.source, t.flight_id::text,
    t.latitude, t.longitude, t.tile_size_meters, t.tile_size_pixels, t.file_path,
    t.content_sha256, t.disk_bytes,
    t.captured_at, t.created_at, t.accessed_at, t.uploaded_at,
    t.freshness_status, t.tile_quality_metadata::text
"""

TILE_COLUMN_ARRAYS: Final = ", ".join(
    f"array_agg({column.strip()})" for column in TILE_COLUMNS.split(",")
)

EVICTION_COLUMNS: Final = """
    e.id, e.tile_uuid::text, e.zoom, e.x, e.y, e.source, e.flight_id::text, e.file_path,
    e.content_sha256, e.disk_bytes, e.evicted_at, e.accessed_at, e.reason
"""

_STATEMENT: Final = re.compile(
    r"^-- (?P<name>[a-z_]+) --\n(?P<body>.*?)(?=^-- [a-z_]+ --$|\Z)", re.M | re.S
)


def load_queries(*names: str) -> dict[str, str]:
    """The statements of the named files of this folder."""
    queries: dict[str, str] = {}
    for name in names:
        text = files(__name__).joinpath(f"{name}.sql").read_text()
        for match in _STATEMENT.finditer(text):
            body = match["body"].replace("{tile_columns}", TILE_COLUMNS)
            body = body.replace("{tile_column_arrays}", TILE_COLUMN_ARRAYS)
            body = body.replace("{eviction_columns}", EVICTION_COLUMNS)
            queries[match["name"]] = body.strip().rstrip(";")
    return queries
