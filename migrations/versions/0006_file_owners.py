"""Keeps a file that a tile names off the list of files to be removed, whoever writes.

Writers that name files share an advisory lock until they commit, and a writer that lists files
takes it exclusively: each then sees what the other has committed. One lock, because a lock per
file would exhaust PostgreSQL's lock table in a large batch.
"""

from alembic import op

revision = "0006_file_owners"
down_revision = "0005_block_notifications"
branch_labels = None
depends_on = None

MICROSECONDS_PER_TILE = 2
BYTES_PER_TILE = 41

FILES_LOCK = 0x7469_6C65_0005

# In another isolation level the checks below would read an old snapshot.
REQUIRE_READ_COMMITTED = """
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'tiles and tile_evictions are written at isolation level READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
"""
REFUSE_LISTED = """
        RAISE EXCEPTION USING
            MESSAGE = 'file ' || listed || ' is listed for removal: confirm its removal first',
            ERRCODE = 'integrity_constraint_violation',
            CONSTRAINT = 'ck_tiles_file_not_listed';
"""
REFUSE_NAMED = """
        RAISE EXCEPTION USING
            MESSAGE = 'file ' || named || ' belongs to a tile: it cannot be listed for removal',
            ERRCODE = 'integrity_constraint_violation',
            CONSTRAINT = 'ck_tile_evictions_file_not_named';
"""


def upgrade() -> None:
    op.execute("LOCK TABLE tiles, tile_evictions IN SHARE ROW EXCLUSIVE MODE")
    op.execute("CREATE INDEX idx_tiles_file_path ON tiles (file_path)")
    op.execute("""
        DELETE FROM tile_evictions e
        WHERE EXISTS (SELECT FROM tiles t WHERE t.file_path = e.file_path)
    """)
    _create_function(
        "name_lock",
        f"{REQUIRE_READ_COMMITTED} PERFORM pg_advisory_xact_lock_shared({FILES_LOCK});",
    )
    _create_function(
        "list_lock",
        f"{REQUIRE_READ_COMMITTED} PERFORM pg_advisory_xact_lock({FILES_LOCK});",
    )
    _create_function(
        "name_check",
        f"""
        IF NOT EXISTS (SELECT FROM tile_evictions) THEN
            RETURN NULL;
        END IF;
        SELECT file_path INTO listed
        FROM written
        WHERE EXISTS (SELECT FROM tile_evictions e WHERE e.file_path = written.file_path)
        LIMIT 1;
        IF FOUND THEN {REFUSE_LISTED} END IF;
        """,
        "DECLARE listed text;",
    )
    _create_function(
        "rename_check",
        f"""
        SELECT file_path INTO listed FROM tile_evictions WHERE file_path = NEW.file_path LIMIT 1;
        IF FOUND THEN {REFUSE_LISTED} END IF;
        """,
        "DECLARE listed text;",
    )
    _create_function(
        "list_check",
        f"""
        SELECT file_path INTO named
        FROM written
        WHERE EXISTS (SELECT FROM tiles t WHERE t.file_path = written.file_path)
        LIMIT 1;
        IF FOUND THEN {REFUSE_NAMED} END IF;
        """,
        "DECLARE named text;",
    )
    op.execute("""
        CREATE TRIGGER trg_tiles_file_lock BEFORE INSERT OR UPDATE OF file_path ON tiles
            FOR EACH STATEMENT EXECUTE FUNCTION tile_files_name_lock()
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_file_insert AFTER INSERT ON tiles
            REFERENCING NEW TABLE AS written
            FOR EACH STATEMENT EXECUTE FUNCTION tile_files_name_check()
    """)
    op.execute("""
        CREATE TRIGGER trg_tiles_file_update AFTER UPDATE OF file_path ON tiles
            FOR EACH ROW WHEN (NEW.file_path <> OLD.file_path)
            EXECUTE FUNCTION tile_files_rename_check()
    """)
    op.execute("""
        CREATE TRIGGER trg_tile_evictions_file_lock BEFORE INSERT OR UPDATE ON tile_evictions
            FOR EACH STATEMENT EXECUTE FUNCTION tile_files_list_lock()
    """)
    for event in ("insert", "update"):
        op.execute(f"""
            CREATE TRIGGER trg_tile_evictions_file_{event} AFTER {event.upper()} ON tile_evictions
                REFERENCING NEW TABLE AS written
                FOR EACH STATEMENT EXECUTE FUNCTION tile_files_list_check()
        """)


def downgrade() -> None:
    for event in ("update", "insert", "lock"):
        op.execute(f"DROP TRIGGER trg_tile_evictions_file_{event} ON tile_evictions")
        op.execute(f"DROP TRIGGER trg_tiles_file_{event} ON tiles")
    for function in ("name_lock", "list_lock", "name_check", "rename_check", "list_check"):
        op.execute(f"DROP FUNCTION tile_files_{function}()")
    op.execute("DROP INDEX idx_tiles_file_path")


def _create_function(name: str, body: str, variables: str = "") -> None:
    op.execute(f"""
        CREATE FUNCTION tile_files_{name}() RETURNS trigger LANGUAGE plpgsql AS $$
        {variables}
        BEGIN
            {body}
            RETURN NULL;
        END $$
    """)
