"""The query catalogue: every statement that the daemon executes, by name.

Each statement in a file follows a line `-- name --` and a comment on its purpose. Placeholders:
`{tile_columns}` for the columns of `models.Tile` in order, `{tile_records}` for the columns
that `tile_columns.TileColumns` reads, `{eviction_columns}` for those of `models.Eviction`,
`{rule_label}` and `{label_at}` for queries of the label of the tile `t` at the time `now`,
`{decisive_rule}` for one of its sector and rule,
`{pinned}` for a query that has a row if a pin holds it, `{digested_record}` for what is digested
of it.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from tilecache.identity import SOURCE_NUMBERS
from tilecache_daemon.models import FreshnessLabel
from tilecache_daemon.store.tile_columns import (
    LABEL_SHIFT,
    NO_FLIGHT,
    NO_SIZE,
    NO_TIME,
    SHA256_SHIFT,
)

TILE_COLUMNS: Final = """
    t.tile_uuid::text, t.location_hash::text, t.zoom, t.x, t.y, t.source, t.flight_id::text,
    t.latitude, t.longitude, t.tile_size_meters, t.tile_size_pixels, t.file_path,
    t.content_sha256, t.disk_bytes,
    t.captured_at, t.created_at, t.accessed_at, t.uploaded_at,
    t.freshness_status, t.tile_quality_metadata::text
"""


def _code(column: str, codes: Mapping[str, int]) -> str:
    cases = " ".join(f"WHEN '{text}' THEN {code}" for text, code in codes.items())
    return f"CASE {column} {cases} ELSE 0 END"


_SOURCE: Final = _code("t.source", SOURCE_NUMBERS)
_LABEL: Final = _code(
    "t.freshness_status",
    {label.value: rank << LABEL_SHIFT for rank, label in enumerate(FreshnessLabel)},
)
_LABEL_RANK: Final = _code(
    "t.freshness_status", {label.value: rank for rank, label in enumerate(FreshnessLabel)}
)
_IN_POLYGON: Final = """
    SELECT coalesce(bool_or(
               CASE WHEN e.south = e.north
                   THEN t.latitude = e.south
                        AND p.longitude BETWEEN least(e.west, e.east) AND greatest(e.west, e.east)
                   ELSE t.latitude BETWEEN e.south AND e.north AND p.longitude = e.beside
               END
           ), false)
        OR mod(count(*) FILTER (
               WHERE e.south <= t.latitude AND t.latitude < e.north AND p.longitude < e.beside
           ), 2) = 1
    FROM (
        SELECT CASE WHEN t.longitude < s.west THEN t.longitude + 360 ELSE t.longitude END
                   AS longitude
    ) AS p
    CROSS JOIN LATERAL (
        SELECT u.*,
               u.west + (t.latitude - u.south)
                        * CASE WHEN u.north > u.south
                              THEN (u.east - u.west) / (u.north - u.south) ELSE 0
                          END AS beside
        FROM unnest(s.edge_souths, s.edge_wests, s.edge_norths, s.edge_easts)
                 AS u (south, west, north, east)
    ) AS e
"""
"""Whether the centre of the tile `t` is within the polygon of the sector `s`, as
`Polygon.contains` has it, to the last bit."""
_DECISIVE_RULE: Final = """
    SELECT s.name, r.action,
           (least(t.captured_at, '9999-01-01') AT TIME ZONE 'UTC'
            + make_interval(months => r.max_age_months)) AT TIME ZONE 'UTC' AS expires_at,
           CASE r.action WHEN 'reject' THEN 'rejected' WHEN 'downgrade' THEN 'downgraded' END
               AS expired_label
    FROM sector_classifications s
    LEFT JOIN tile_freshness_rules r USING (classification)
    WHERE t.latitude BETWEEN s.south AND s.north
      AND CASE
              WHEN s.west <= s.east THEN t.longitude BETWEEN s.west AND s.east
              ELSE t.longitude >= s.west OR t.longitude <= s.east
          END
      AND (s.polygon IS NULL OR ({in_polygon}))
    ORDER BY s.classification = 'active_conflict' DESC, s.name COLLATE "C"
    LIMIT 1
""".replace("{in_polygon}", _IN_POLYGON)
"""The sector and the rule of the tile `t`, as `FreshnessPolicy.evaluate` finds them: no row outside
all sectors, NULLs without a rule."""
_RULE_LABEL: Final = """
    SELECT CASE WHEN d.expires_at > %(now)s THEN 'fresh' ELSE d.expired_label END
    FROM ({decisive_rule}) AS d
""".replace("{decisive_rule}", _DECISIVE_RULE)
"""The label of the tile `t` at the time `now`: no row outside all sectors, NULL without a rule."""
_LABEL_AT: Final = f"""
    SELECT CASE
               WHEN t.freshness_status IN ('stale_warn', 'stale_reject') THEN t.freshness_status
               ELSE coalesce(({_RULE_LABEL}), 'fresh')
           END
"""
_LABEL_RANK_AT: Final = _code(
    "at.label", {label.value: rank for rank, label in enumerate(FreshnessLabel)}
)
# One row if a pin holds the tile `t`. A scalar query, so that tiles are read in the order of an
# index however many pins there are.
_PINNED: Final = """
    SELECT true
    FROM tile_pin_blocks b
    JOIN tile_pins p ON p.id = b.pin_id
    WHERE b.zoom = t.zoom AND b.x = t.x >> 5 AND b.y = t.y >> 5
      AND NOT p.ended
      AND get_bit(b.cells, (t.y & 31) * 32 + (t.x & 31)) = 1
    LIMIT 1
"""
# A position in exact microseconds since 2000, also of times that no calendar has.
_AFTER_CAPTURED_AT: Final = """
    CASE %(after_us)s::bigint
        WHEN 9223372036854775807 THEN 'infinity'
        WHEN -9223372036854775808 THEN '-infinity'
        ELSE timestamptz '2000-01-01 00:00:00+00' + make_interval(
            days => (%(after_us)s::bigint / 86400000000)::int,
            secs => mod(%(after_us)s::bigint, 86400000000) / 1000000.0
        )
    END
"""
_SHA256: Final = f"CASE WHEN t.content_sha256 IS NULL THEN 0 ELSE {1 << SHA256_SHIFT} END"

_NO_FLIGHT: Final = rf"'\x{NO_FLIGHT.hex()}'::bytea"
_NO_TIME: Final = rf"'\x{NO_TIME.to_bytes(8, 'big', signed=True).hex()}'::bytea"

TILE_RECORD: Final = (
    "uuid_send(t.tile_uuid)",
    "uuid_send(t.location_hash)",
    f"coalesce(uuid_send(t.flight_id), {_NO_FLIGHT})",
    "int8send((t.x::bigint << 32) | (t.y & 4294967295))",
    "int8send((t.zoom::bigint << 32) | length(t.file_path))",
    f"int8send((t.tile_size_pixels::bigint << 32) | ({_SOURCE} + {_LABEL} + {_SHA256}))",
    "circle_send(circle(point(t.latitude, t.longitude), t.tile_size_meters))",
    f"int8send(coalesce(t.disk_bytes, {NO_SIZE}))",
    "timestamptz_send(t.captured_at)",
    "timestamptz_send(t.created_at)",
    f"coalesce(timestamptz_send(t.accessed_at), {_NO_TIME})",
    f"coalesce(timestamptz_send(t.uploaded_at), {_NO_TIME})",
)
"""The fields of `tile_columns.RECORD` in order, encoded by PostgreSQL's send functions. Two
integers or three doubles share a call where possible, since each call allocates memory.
Sending each column as a separate value takes twice the time."""

TILE_RECORDS: Final = f"""
    string_agg({" || ".join(TILE_RECORD)}, ''::bytea),
    string_agg(t.file_path, ''), string_agg(t.content_sha256, ''),
    string_agg(coalesce(t.tile_quality_metadata::text, ''), E'\n')
"""

_DIGESTED_RECORD: Final = rf"""
    uuid_send(t.tile_uuid)
    || CASE WHEN t.content_sha256 COLLATE "C" ~ '^[0-9a-f]{{64}}$'
           THEN decode(t.content_sha256, 'hex')
           ELSE '\x{bytes(32).hex()}'::bytea
       END
    || int8send(
           (extract(
                epoch FROM least(
                    greatest(t.captured_at, '0001-01-01 00:00:00+00'),
                    '9999-12-31 23:59:59.999999+00'
                )
            ) * 1000000)::bigint
       )
"""
"""The record of the tile `t` that block_digest.proto defines, with the capture time that the tile
has on the wire. The collation makes the comparison ten times as fast."""

EVICTION_COLUMNS: Final = """
    e.id, e.tile_uuid::text, e.zoom, e.x, e.y, e.source, e.flight_id::text, e.file_path,
    e.content_sha256, e.disk_bytes, e.evicted_at, e.accessed_at, e.reason
"""

_PLACEHOLDERS: Final = {
    "{tile_columns}": TILE_COLUMNS,
    "{tile_records}": TILE_RECORDS,
    "{label_rank}": _LABEL_RANK,
    "{label_rank_at}": _LABEL_RANK_AT,
    "{label_at}": _LABEL_AT,
    "{rule_label}": _RULE_LABEL,
    "{decisive_rule}": _DECISIVE_RULE,
    "{pinned}": _PINNED,
    "{digested_record}": _DIGESTED_RECORD,
    "{after_captured_at}": _AFTER_CAPTURED_AT,
    "{eviction_columns}": EVICTION_COLUMNS,
}
_STATEMENT: Final = re.compile(
    r"^-- (?P<name>[a-z_]+) --\n(?P<body>.*?)(?=^-- [a-z_]+ --$|\Z)", re.M | re.S
)


def load_queries(*names: str) -> dict[str, str]:
    """The statements of the named files in this directory."""
    queries: dict[str, str] = {}
    for name in names:
        source = files(__name__).joinpath(f"{name}.sql").read_text()
        for match in _STATEMENT.finditer(source):
            body = match["body"]
            for placeholder, text in _PLACEHOLDERS.items():
                body = body.replace(placeholder, text)
            queries[match["name"]] = body.strip().rstrip(";")
    return queries
