"""The order of accesses, from a sequence, so that it does not depend on the wall clock."""

from alembic import op

revision = "0003_access_order"
down_revision = "0002_c6_tile_identity_and_lru"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE tiles ADD COLUMN access_order bigint")
    op.execute("CREATE SEQUENCE tile_access_order_seq AS bigint OWNED BY tiles.access_order")
    # The known order is kept. A tile without accesses is ordered by its creation.
    op.execute("""
        UPDATE tiles SET access_order = used.position
        FROM (
            SELECT id, row_number() OVER (ORDER BY coalesce(accessed_at, created_at), id)
                       AS position
            FROM tiles
        ) AS used
        WHERE tiles.id = used.id
    """)
    op.execute("""
        SELECT setval('tile_access_order_seq', coalesce(max(access_order), 0) + 1, false)
        FROM tiles
    """)
    op.execute("""
        ALTER TABLE tiles
            ALTER COLUMN access_order SET DEFAULT nextval('tile_access_order_seq'),
            ALTER COLUMN access_order SET NOT NULL
    """)
    op.execute("CREATE INDEX idx_tiles_access_order ON tiles (access_order, id)")


def downgrade() -> None:
    op.execute("DROP INDEX idx_tiles_access_order")
    op.execute("ALTER TABLE tiles ALTER COLUMN access_order DROP DEFAULT")
    op.execute("DROP SEQUENCE tile_access_order_seq")
    op.execute("ALTER TABLE tiles DROP COLUMN access_order")
