"""Evicted tiles whose files are to be removed, and usage totals kept by triggers."""

from alembic import op

revision = "0004_evictions_and_usage"
down_revision = "0003_access_order"
branch_labels = None
depends_on = None

# The group that a tile is counted in.
USAGE_OF = """
    {row}.zoom, {row}.source, {row}.freshness_status,
    {row}.source = 'onboard_ingest' AND {row}.uploaded_at IS NULL
"""


def upgrade() -> None:
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
    # Rows are differences, and their sum is the usage. So writers never wait for one row.
    op.execute("""
        CREATE TABLE tile_usage (
            zoom integer NOT NULL,
            source text NOT NULL,
            freshness_status text NOT NULL,
            pending_upload boolean NOT NULL,
            tile_count bigint NOT NULL,
            used_bytes bigint NOT NULL,
            unknown_size_count bigint NOT NULL
        )
    """)
    _create_trigger_functions()
    op.execute(f"""
        INSERT INTO tile_usage
        SELECT {USAGE_OF.format(row="t")}, count(*), coalesce(sum(disk_bytes), 0),
               count(*) FILTER (WHERE disk_bytes IS NULL)
        FROM tiles t
        GROUP BY 1, 2, 3, 4
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_usage_insert AFTER INSERT ON tiles
            REFERENCING NEW TABLE AS changed
            FOR EACH STATEMENT EXECUTE FUNCTION tile_usage_add_statement('1')
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_usage_delete AFTER DELETE ON tiles
            REFERENCING OLD TABLE AS changed
            FOR EACH STATEMENT EXECUTE FUNCTION tile_usage_add_statement('-1')
    """)
    # Most updates record an access and do not change the usage; they cost one comparison.
    op.execute("""
        CREATE TRIGGER trg_tiles_usage_update AFTER UPDATE ON tiles
            FOR EACH ROW
            WHEN ((OLD.zoom, OLD.source, OLD.freshness_status, OLD.uploaded_at IS NULL,
                   OLD.disk_bytes)
                  IS DISTINCT FROM
                  (NEW.zoom, NEW.source, NEW.freshness_status, NEW.uploaded_at IS NULL,
                   NEW.disk_bytes))
            EXECUTE FUNCTION tile_usage_move_row()
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_usage_truncate AFTER TRUNCATE ON tiles
            FOR EACH STATEMENT EXECUTE FUNCTION tile_usage_clear()
    """)


def downgrade() -> None:
    for event in ("insert", "delete", "update", "truncate"):
        op.execute(f"DROP TRIGGER trg_tiles_usage_{event} ON tiles")
    for function in ("add_statement", "move_row", "clear"):
        op.execute(f"DROP FUNCTION tile_usage_{function}()")
    op.execute("DROP TABLE tile_usage")
    op.execute("DROP TABLE tile_evictions")


def _create_trigger_functions() -> None:
    op.execute(f"""
        CREATE FUNCTION tile_usage_add_statement() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO tile_usage
            SELECT {USAGE_OF.format(row="c")},
                   TG_ARGV[0]::bigint * count(*),
                   TG_ARGV[0]::bigint * coalesce(sum(c.disk_bytes), 0),
                   TG_ARGV[0]::bigint * count(*) FILTER (WHERE c.disk_bytes IS NULL)
            FROM changed c
            GROUP BY 1, 2, 3, 4;
            RETURN NULL;
        END $$
    """)
    op.execute(f"""
        CREATE FUNCTION tile_usage_move_row() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO tile_usage VALUES
                ({USAGE_OF.format(row="OLD")}, -1, -coalesce(OLD.disk_bytes, 0),
                 -(OLD.disk_bytes IS NULL)::int),
                ({USAGE_OF.format(row="NEW")}, 1, coalesce(NEW.disk_bytes, 0),
                 (NEW.disk_bytes IS NULL)::int);
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE FUNCTION tile_usage_clear() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM tile_usage;
            RETURN NULL;
        END $$
    """)
