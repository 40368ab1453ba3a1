"""Adds an index of blocks of 32 x 32 cells, and a notification for each block that changes."""

from alembic import op

revision = "0005_block_notifications"
down_revision = "0004_usage_and_removals"
branch_labels = None
depends_on = None

MICROSECONDS_PER_TILE = 2
BYTES_PER_TILE = 8

CHANNEL = "tilecache_changes"
BLOCKS_A_NOTIFICATION = 400  # "22/131071/131071," has 17 bytes, a notification fewer than 8000

NOTIFY_ALL = f"""
    PERFORM pg_notify('{CHANNEL}', coalesce(current_setting('tilecache.writer', true), '') || ' *');
"""


def notify_blocks(rows: str) -> str:
    """Notifies of the blocks that some rows lie in, after the writer's id, if it gave one."""
    return f"""
    PERFORM pg_notify(
        '{CHANNEL}',
        coalesce(current_setting('tilecache.writer', true), '') || ' ' || string_agg(block, ',')
    )
    FROM (
        SELECT zoom || '/' || (x >> 5) || '/' || (y >> 5) AS block,
               row_number() OVER () / {BLOCKS_A_NOTIFICATION} AS part
        FROM {rows} AS changed
        GROUP BY zoom, x >> 5, y >> 5
    ) AS blocks
    GROUP BY part;
    """


def upgrade() -> None:
    op.execute("CREATE INDEX idx_tiles_block ON tiles (zoom, (x >> 5), (y >> 5))")
    _create_function("rows", notify_blocks("written"))
    _create_function(
        "update",
        notify_blocks("(SELECT zoom, x, y FROM before UNION ALL SELECT zoom, x, y FROM written)"),
    )
    _create_function("all", NOTIFY_ALL)
    for event, tables, function in (
        ("insert", "REFERENCING NEW TABLE AS written", "rows"),
        ("update", "REFERENCING OLD TABLE AS before NEW TABLE AS written", "update"),
        ("delete", "REFERENCING OLD TABLE AS written", "rows"),
        ("truncate", "", "all"),
    ):
        op.execute(f"""
            CREATE TRIGGER trg_tiles_notify_{event} AFTER {event.upper()} ON tiles {tables}
                FOR EACH STATEMENT EXECUTE FUNCTION tile_changes_notify_{function}()
        """)


def downgrade() -> None:
    for event in ("insert", "update", "delete", "truncate"):
        op.execute(f"DROP TRIGGER trg_tiles_notify_{event} ON tiles")
    for function in ("rows", "update", "all"):
        op.execute(f"DROP FUNCTION tile_changes_notify_{function}()")
    op.execute("DROP INDEX idx_tiles_block")


def _create_function(name: str, body: str) -> None:
    op.execute(f"""
        CREATE FUNCTION tile_changes_notify_{name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            {body}
            RETURN NULL;
        END $$
    """)
