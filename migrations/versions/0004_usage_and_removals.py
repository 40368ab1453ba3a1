"""Adds the list of files to be removed, and the storage usage, which triggers maintain."""

from alembic import op

revision = "0004_usage_and_removals"
down_revision = "0003_access_sequence"
branch_labels = None
depends_on = None

MICROSECONDS_PER_TILE = 1

FOLD_LOCK = 0x7469_6C65_0004  # the daemon's, for adding up the usage

# The columns of the usage for a tile that counts `count` times.
USAGE_OF = """
    zoom, source, freshness_status, source = 'onboard_ingest' AND uploaded_at IS NULL,
    sum({count}), sum({count} * coalesce(disk_bytes, 0)),
    sum({count} * (disk_bytes IS NULL)::int)
"""


def upgrade() -> None:
    # Before the count: a writer that has not committed yet would be missed.
    op.execute("LOCK TABLE tiles IN SHARE ROW EXCLUSIVE MODE")
    op.execute("""
        CREATE TABLE tile_evictions (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            tile_uuid uuid NOT NULL,
            zoom integer NOT NULL,
            x integer NOT NULL,
            y integer NOT NULL,
            source text NOT NULL,
            flight_id uuid,
            file_path text NOT NULL,
            content_sha256 text,
            disk_bytes bigint,
            accessed_at timestamptz,
            evicted_at timestamptz NOT NULL,
            reason text NOT NULL,
            CONSTRAINT ck_tile_evictions_reason CHECK (
                reason IN ('evicted', 'evicted_on_insert', 'deleted', 'replaced')
            )
        )
    """)
    op.execute("CREATE INDEX idx_tile_evictions_file_path ON tile_evictions (file_path)")
    # Rows are differences: their sum is the usage, and two writers never wait for one row.
    # Sizes are summed up as numeric, which does not overflow.
    op.execute("""
        CREATE TABLE tile_usage (
            zoom integer NOT NULL,
            source text NOT NULL,
            freshness_status text NOT NULL,
            pending_upload boolean NOT NULL,
            tile_count bigint NOT NULL,
            used_bytes numeric NOT NULL,
            unknown_size_count bigint NOT NULL
        )
    """)
    # A small table of which all rows are replaced often.
    op.execute("""
        ALTER TABLE tile_usage SET (
            autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
        )
    """)
    op.execute(f"""
        INSERT INTO tile_usage
        SELECT {USAGE_OF.format(count="1")}
        FROM tiles
        GROUP BY 1, 2, 3, 4
    """)
    _create_trigger("insert", "NEW TABLE AS changed", USAGE_OF.format(count="1"), "changed")
    _create_trigger("delete", "OLD TABLE AS changed", USAGE_OF.format(count="-1"), "changed")
    _create_trigger(
        "update",
        "OLD TABLE AS before NEW TABLE AS after",
        USAGE_OF.format(count="count"),
        "(SELECT -1 AS count, * FROM before UNION ALL SELECT 1, * FROM after) AS changed",
    )
    # The lock keeps out the daemon's fold, whose new rows this statement would not see.
    op.execute(f"""
        CREATE FUNCTION tile_usage_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock({FOLD_LOCK});
            DELETE FROM tile_usage;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_usage_truncate AFTER TRUNCATE ON tiles
            FOR EACH STATEMENT EXECUTE FUNCTION tile_usage_truncate()
    """)


def downgrade() -> None:
    for event in ("insert", "delete", "update", "truncate"):
        op.execute(f"DROP TRIGGER trg_tiles_usage_{event} ON tiles")
        op.execute(f"DROP FUNCTION tile_usage_{event}()")
    op.execute("DROP TABLE tile_usage")
    op.execute("DROP TABLE tile_evictions")


def _create_trigger(event: str, tables: str, usage: str, changed: str) -> None:
    """Adds the difference that a statement makes; most updates make none."""
    op.execute(f"""
        CREATE FUNCTION tile_usage_{event}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO tile_usage
            SELECT *
            FROM (
                SELECT {usage}
                FROM {changed}
                GROUP BY 1, 2, 3, 4
            ) AS d (zoom, source, freshness_status, pending, tiles, bytes, unknown)
            WHERE tiles <> 0 OR bytes <> 0 OR unknown <> 0;
            RETURN NULL;
        END $$
    """)
    op.execute(f"""
        CREATE TRIGGER trg_tiles_usage_{event} AFTER {event.upper()} ON tiles
            REFERENCING {tables}
            FOR EACH STATEMENT EXECUTE FUNCTION tile_usage_{event}()
    """)
