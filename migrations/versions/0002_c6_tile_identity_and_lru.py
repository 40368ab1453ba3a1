"""Tile identity, content and access columns; sector boxes and freshness rules.

Strictly additive, except that `ck_tiles_freshness_status` is widened. Existing rows
get their identity; their content hash and size stay unknown.
"""

from uuid import UUID, uuid5

from alembic import op
from alembic.util import CommandError
from sqlalchemy import text

revision = "0002_c6_tile_identity_and_lru"
down_revision = "0001_initial"
branch_labels = None
depends_on = None

# Measured: most of it is the derivation, and the copies of rows that it leaves to vacuum.
MICROSECONDS_PER_TILE = 45
BYTES_PER_TILE = 450

# A copy, because the result of a revision must never change.
TILE_NAMESPACE_UUID = UUID("5b8d0c2e-1a4f-4b3a-8c9d-e7f6a3b2c1d0")
NO_FLIGHT = "00000000-0000-0000-0000-000000000000"
BATCH_ROWS = 20_000
NAMED_ROWS = 20

UNDERIVABLE_TILES = """
SELECT id FROM tiles
WHERE source NOT IN ('googlemaps', 'onboard_ingest') OR zoom NOT BETWEEN 0 AND 22
   OR x NOT BETWEEN 0 AND (1 << zoom) - 1 OR y NOT BETWEEN 0 AND (1 << zoom) - 1
ORDER BY id"""

DUPLICATE_TILES = f"""
SELECT unnest(array_agg(id ORDER BY id)) AS id FROM tiles
GROUP BY zoom, x, y, source, coalesce(flight_id, '{NO_FLIGHT}'::uuid)
HAVING count(*) > 1 ORDER BY min(id)"""


def upgrade() -> None:
    _add_tile_columns()
    if op.get_context().as_sql:
        op.get_context().impl.static_output(
            "-- Here tile_uuid and location_hash of existing tiles are derived and filled in.\n"
        )
    else:
        _refuse("have a source, zoom or cell that no id can be derived from", UNDERIVABLE_TILES)
        _refuse("share their zoom, x, y, source and flight with another", DUPLICATE_TILES)
        _fill_in_identities()
    _constrain_tiles()
    _add_sector_boxes()
    _add_freshness_rules()


def downgrade() -> None:
    op.execute("DROP TABLE tile_freshness_rules")
    op.execute("""
        ALTER TABLE sector_classifications
            DROP COLUMN south,
            DROP COLUMN west,
            DROP COLUMN north,
            DROP COLUMN east
    """)
    op.execute("DROP INDEX idx_tiles_natural_key")
    op.execute("DROP INDEX idx_tiles_pending_uploads")
    op.execute("DROP INDEX idx_tiles_captured_at")
    op.execute("DROP INDEX idx_tiles_accessed_at")
    op.execute("DROP INDEX idx_tiles_location_hash")
    # The old schema does not have the new labels; these are the nearest.
    op.execute("""
        UPDATE tiles SET freshness_status = CASE freshness_status
            WHEN 'downgraded' THEN 'stale_warn' ELSE 'stale_reject' END
        WHERE freshness_status IN ('downgraded', 'rejected')
    """)
    _replace_freshness_check("'fresh', 'stale_warn', 'stale_reject'")
    op.execute("""
        ALTER TABLE tiles
            DROP COLUMN tile_uuid,
            DROP COLUMN location_hash,
            DROP COLUMN content_sha256,
            DROP COLUMN disk_bytes,
            DROP COLUMN accessed_at,
            DROP COLUMN uploaded_at
    """)


def _add_tile_columns() -> None:
    op.execute("""
        ALTER TABLE tiles
            ADD COLUMN tile_uuid uuid,
            ADD COLUMN location_hash uuid,
            ADD COLUMN content_sha256 text
                CONSTRAINT ck_tiles_content_sha256 CHECK (length(content_sha256) = 64),
            ADD COLUMN disk_bytes bigint
                CONSTRAINT ck_tiles_disk_bytes CHECK (disk_bytes >= 0),
            ADD COLUMN accessed_at timestamptz,
            ADD COLUMN uploaded_at timestamptz
    """)


def _refuse(fault: str, finding_query: str) -> None:
    bad_ids = op.get_bind().scalars(text(finding_query)).all()
    if not bad_ids:
        return
    named = ", ".join(map(str, bad_ids[:NAMED_ROWS])) + (", ..." * (len(bad_ids) > NAMED_ROWS))
    raise CommandError(
        f"{revision}: {len(bad_ids)} rows of tiles {fault}: id {named}. "
        "Nothing was changed. Correct or delete them, then run it again. "
        f"This finds them:{finding_query};"
    )


def _fill_in_identities() -> None:
    bind = op.get_bind()
    config = op.get_context().config
    report_progress = config.attributes.get("report_progress") if config else None
    tile_count = bind.scalar(text("SELECT count(*) FROM tiles"))
    derived_count = 0
    last_id = None
    while rows := bind.execute(
        text("""
            SELECT id, zoom, x, y, source, flight_id FROM tiles
            WHERE CAST(:last_id AS bigint) IS NULL OR id > :last_id
            ORDER BY id LIMIT :batch_rows
        """),
        {"last_id": last_id, "batch_rows": BATCH_ROWS},
    ).all():
        cells = [f"{row.zoom}/{row.x}/{row.y}" for row in rows]
        bind.execute(
            text("""
                UPDATE tiles
                SET tile_uuid = derived.tile_uuid, location_hash = derived.location_hash
                FROM unnest(
                    CAST(:ids AS bigint[]),
                    CAST(:tile_uuids AS uuid[]),
                    CAST(:location_hashes AS uuid[])
                ) AS derived (id, tile_uuid, location_hash)
                WHERE tiles.id = derived.id
            """),
            {
                "ids": [row.id for row in rows],
                "tile_uuids": [
                    uuid5(TILE_NAMESPACE_UUID, f"{cell}/{row.source}/{row.flight_id or NO_FLIGHT}")
                    for cell, row in zip(cells, rows, strict=True)
                ],
                "location_hashes": [uuid5(TILE_NAMESPACE_UUID, cell) for cell in cells],
            },
        )
        last_id = rows[-1].id
        derived_count += len(rows)
        if report_progress:
            report_progress(f"derived the ids of {derived_count:,} of {tile_count:,} tiles")


def _constrain_tiles() -> None:
    op.execute("""
        ALTER TABLE tiles
            ALTER COLUMN tile_uuid SET NOT NULL,
            ALTER COLUMN location_hash SET NOT NULL,
            ADD CONSTRAINT uq_tiles_tile_uuid UNIQUE (tile_uuid)
    """)
    _replace_freshness_check("'fresh', 'stale_warn', 'stale_reject', 'downgraded', 'rejected'")
    op.execute(f"""
        CREATE UNIQUE INDEX idx_tiles_natural_key ON tiles
            (zoom, x, y, source, coalesce(flight_id, '{NO_FLIGHT}'::uuid))
    """)
    op.execute("CREATE INDEX idx_tiles_location_hash ON tiles (location_hash)")
    op.execute("CREATE INDEX idx_tiles_accessed_at ON tiles (accessed_at)")
    op.execute("CREATE INDEX idx_tiles_captured_at ON tiles (captured_at)")
    op.execute("""
        CREATE INDEX idx_tiles_pending_uploads ON tiles (captured_at, id)
            WHERE source = 'onboard_ingest' AND uploaded_at IS NULL
    """)


def _replace_freshness_check(labels: str) -> None:
    op.execute(f"""
        ALTER TABLE tiles
            DROP CONSTRAINT ck_tiles_freshness_status,
            ADD CONSTRAINT ck_tiles_freshness_status CHECK (freshness_status IN ({labels}))
    """)


def _add_sector_boxes() -> None:
    # Degrees. A sector without a box contains no tiles.
    op.execute("""
        ALTER TABLE sector_classifications
            ADD COLUMN south double precision,
            ADD COLUMN west double precision,
            ADD COLUMN north double precision,
            ADD COLUMN east double precision
    """)


def _add_freshness_rules() -> None:
    op.execute("""
        CREATE TABLE tile_freshness_rules (
            classification text PRIMARY KEY
                CONSTRAINT ck_tile_freshness_rules_classification
                CHECK (classification IN ('active_conflict', 'stable_rear')),
            max_age_months integer NOT NULL
                CONSTRAINT ck_tile_freshness_rules_max_age_months CHECK (max_age_months > 0),
            action text NOT NULL
                CONSTRAINT ck_tile_freshness_rules_action CHECK (action IN ('reject', 'downgrade'))
        )
    """)
    op.execute("""
        INSERT INTO tile_freshness_rules (classification, max_age_months, action)
        VALUES ('active_conflict', 6, 'reject'), ('stable_rear', 12, 'downgrade')
    """)
