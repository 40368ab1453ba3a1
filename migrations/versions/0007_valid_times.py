"""Refuses times that no client can read, and adds the order in which a purge reads tiles."""

from alembic import op

revision = "0007_valid_times"
down_revision = "0006_file_owners"
branch_labels = None
depends_on = None

MICROSECONDS_PER_TILE = 1
BYTES_PER_TILE = 32

# The calendar of google.protobuf.Timestamp and of Python. Compared as UTC, whatever the session's
# time zone.
FIRST, LAST = "timestamptz '0001-01-01 00:00:00+00'", "timestamptz '9999-12-31 23:59:59.999999+00'"
COLUMNS = ("captured_at", "created_at", "accessed_at", "uploaded_at")
CONSTRAINT = "ck_tiles_times"


def invalid(row: str, column: str) -> str:
    return f"({row}.{column} < {FIRST} OR {row}.{column} > {LAST})"


def upgrade() -> None:
    op.execute("LOCK TABLE tiles IN SHARE ROW EXCLUSIVE MODE")
    # The ids order tiles of one capture time, of which an archive's import makes many.
    op.execute("CREATE INDEX idx_tiles_captured_at_id ON tiles (captured_at, id)")
    refusal = f"""
        RAISE EXCEPTION 'a time of a tile lies outside the years 1 to 9999'
            USING ERRCODE = 'check_violation', CONSTRAINT = '{CONSTRAINT}';
    """
    written = " OR ".join(invalid("written", column) for column in COLUMNS)
    # Triggers, because a check would refuse each later change of an old row that violates it. One
    # for all rows of a statement, because one for each row slows COPY.
    op.execute(f"""
        CREATE FUNCTION tile_times_insert() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM written WHERE {written}) THEN {refusal} END IF;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_times_insert AFTER INSERT ON tiles
            REFERENCING NEW TABLE AS written
            FOR EACH STATEMENT EXECUTE FUNCTION tile_times_insert()
    """)
    changed = " OR ".join(
        f"(NEW.{column} IS DISTINCT FROM OLD.{column} AND {invalid('NEW', column)})"
        for column in COLUMNS
    )
    op.execute(f"""
        CREATE FUNCTION tile_times_update() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            {refusal}
        END $$
    """)
    op.execute(f"""
        CREATE TRIGGER trg_tiles_times_update
            AFTER UPDATE OF captured_at, created_at, accessed_at, uploaded_at ON tiles
            FOR EACH ROW WHEN ({changed})
            EXECUTE FUNCTION tile_times_update()
    """)


def downgrade() -> None:
    for event in ("update", "insert"):
        op.execute(f"DROP TRIGGER trg_tiles_times_{event} ON tiles")
        op.execute(f"DROP FUNCTION tile_times_{event}()")
    op.execute("DROP INDEX idx_tiles_captured_at_id")
