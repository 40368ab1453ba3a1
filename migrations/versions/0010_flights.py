"""Adds the usage of each flight, and indexes for its first and last capture and its area."""

from alembic import op

revision = "0010_flights"
down_revision = "0009_sector_polygons"
branch_labels = None
depends_on = None

MICROSECONDS_PER_TILE = 2
BYTES_PER_TILE = 100

FOLD_LOCK = 0x7469_6C65_0004  # as in 0004: the daemon's, for adding up the usage

PENDING = "(uploaded_at IS NULL AND source = 'onboard_ingest')::int"
# The columns of the usage for a tile that counts `count` times.
USAGE_OF = f"""
    flight_id, zoom,
    sum({{count}}), sum({{count}} * coalesce(disk_bytes, 0)),
    sum({{count}} * {PENDING}), sum({{count}} * {PENDING} * coalesce(disk_bytes, 0))
"""


def upgrade() -> None:
    # Before the count: a writer that has not committed yet would be missed.
    op.execute("LOCK TABLE tiles IN SHARE ROW EXCLUSIVE MODE")
    # Rows are differences, as in tile_usage.
    op.execute("""
        CREATE TABLE tile_flight_usage (
            flight_id uuid NOT NULL,
            zoom integer NOT NULL,
            tile_count bigint NOT NULL,
            used_bytes numeric NOT NULL,
            pending_count bigint NOT NULL,
            pending_bytes numeric NOT NULL
        )
    """)
    op.execute("""
        ALTER TABLE tile_flight_usage SET (
            autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
        )
    """)
    op.execute("CREATE INDEX idx_tile_flight_usage ON tile_flight_usage (flight_id, zoom)")
    op.execute(f"""
        INSERT INTO tile_flight_usage
        SELECT {USAGE_OF.format(count="1")}
        FROM tiles
        WHERE flight_id IS NOT NULL
        GROUP BY 1, 2
    """)
    # The least and the greatest of each flight are found by one look into an index.
    for name, columns in (
        ("captured_at", "flight_id, captured_at"),
        ("x", "flight_id, zoom, x"),
        ("y", "flight_id, zoom, y"),
    ):
        op.execute(f"""
            CREATE INDEX idx_tiles_flight_{name} ON tiles ({columns})
            WHERE flight_id IS NOT NULL
        """)
    _create_trigger("insert", "NEW TABLE AS changed", USAGE_OF.format(count="1"), "changed")
    _create_trigger("delete", "OLD TABLE AS changed", USAGE_OF.format(count="-1"), "changed")
    _create_trigger(
        "update",
        "OLD TABLE AS before NEW TABLE AS after",
        USAGE_OF.format(count="count"),
        "(SELECT -1 AS count, * FROM before UNION ALL SELECT 1, * FROM after) AS changed",
    )
    op.execute(f"""
        CREATE FUNCTION tile_flight_usage_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock({FOLD_LOCK});
            DELETE FROM tile_flight_usage;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_flight_usage_truncate AFTER TRUNCATE ON tiles
            FOR EACH STATEMENT EXECUTE FUNCTION tile_flight_usage_truncate()
    """)


def downgrade() -> None:
    for event in ("insert", "delete", "update", "truncate"):
        op.execute(f"DROP TRIGGER trg_tiles_flight_usage_{event} ON tiles")
        op.execute(f"DROP FUNCTION tile_flight_usage_{event}()")
    for name in ("captured_at", "x", "y"):
        op.execute(f"DROP INDEX idx_tiles_flight_{name}")
    op.execute("DROP TABLE tile_flight_usage")


def _create_trigger(event: str, tables: str, usage: str, changed: str) -> None:
    """Adds the difference that a statement makes; most statements make none."""
    op.execute(f"""
        CREATE FUNCTION tile_flight_usage_{event}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO tile_flight_usage
            SELECT *
            FROM (
                SELECT {usage}
                FROM {changed}
                WHERE flight_id IS NOT NULL
                GROUP BY 1, 2
            ) AS d (flight_id, zoom, tiles, bytes, pending, pending_bytes)
            WHERE tiles <> 0 OR bytes <> 0 OR pending <> 0 OR pending_bytes <> 0;
            RETURN NULL;
        END $$
    """)
    op.execute(f"""
        CREATE TRIGGER trg_tiles_flight_usage_{event} AFTER {event.upper()} ON tiles
            REFERENCING {tables}
            FOR EACH STATEMENT EXECUTE FUNCTION tile_flight_usage_{event}()
    """)
