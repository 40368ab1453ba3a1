"""The order of accesses, counted, so that it does not rest on the wall clock."""

from alembic import op

revision = "0003_access_order"
down_revision = "0002_c6_tile_identity_and_lru"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE tiles ADD COLUMN access_order bigint")
    op.execute("CREATE SEQUENCE tile_access_order_seq AS bigint OWNED BY tiles.access_order")
    # What is known of the order so far is kept.
    op.execute("""
        UPDATE tiles SET access_order = accessed.position
        FROM (
            SELECT id, row_number() OVER (ORDER BY accessed_at, id) AS position
            FROM tiles WHERE accessed_at IS NOT NULL
        ) AS accessed
        WHERE tiles.id = accessed.id
    """)
    op.execute("""
        SELECT setval('tile_access_order_seq', coalesce(max(access_order), 0) + 1, false)
        FROM tiles
    """)
    op.execute("CREATE INDEX idx_tiles_access_order ON tiles (access_order NULLS FIRST, id)")


def downgrade() -> None:
    op.execute("DROP INDEX idx_tiles_access_order")
    op.execute("DROP SEQUENCE tile_access_order_seq")
    op.execute("ALTER TABLE tiles DROP COLUMN access_order")
