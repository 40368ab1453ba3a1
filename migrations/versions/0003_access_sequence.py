"""Adds the order of use, numbered by a sequence, so that it does not depend on the wall clock."""

from alembic import op

revision = "0003_access_sequence"
down_revision = "0002_c6_tile_identity_and_lru"
branch_labels = None
depends_on = None

# Where no access was recorded, as after 0002; else the table is rewritten once more.
MICROSECONDS_PER_TILE = 3

# A tile that waits for upload is evicted only on request, and one of unknown or no size frees
# nothing. Each row is in one of the two indexes at most, so that an access is written once.
PENDING = "source = 'onboard_ingest' AND uploaded_at IS NULL"
UPLOADED = "(source <> 'onboard_ingest' OR uploaded_at IS NOT NULL)"


def upgrade() -> None:
    op.execute("LOCK TABLE tiles IN ACCESS EXCLUSIVE MODE")
    # A constant default does not rewrite the table. Tiles that share it are ordered by id.
    op.execute("ALTER TABLE tiles ADD COLUMN access_order bigint NOT NULL DEFAULT 0")
    op.execute("CREATE SEQUENCE tile_access_order_seq AS bigint OWNED BY tiles.access_order")
    # Only where accesses were recorded; a tile that was never used counts from its creation.
    op.execute("""
        UPDATE tiles SET access_order = used.position
        FROM (
            SELECT id, row_number() OVER (ORDER BY coalesce(accessed_at, created_at), id)
                       AS position
            FROM tiles
        ) AS used
        WHERE tiles.id = used.id
          AND EXISTS (SELECT FROM tiles WHERE accessed_at IS NOT NULL)
    """)
    op.execute("""
        SELECT setval('tile_access_order_seq', coalesce(max(access_order), 0) + 1, false)
        FROM tiles
    """)
    op.execute("""
        ALTER TABLE tiles
            ALTER COLUMN access_order SET DEFAULT nextval('tile_access_order_seq')
    """)
    op.execute(f"""
        CREATE INDEX idx_tiles_evictable ON tiles (access_order, id)
            WHERE {UPLOADED} AND disk_bytes > 0
    """)
    op.execute(f"""
        CREATE INDEX idx_tiles_pending_by_access ON tiles (access_order, id)
            WHERE {PENDING} AND disk_bytes > 0
    """)


def downgrade() -> None:
    op.execute("DROP INDEX idx_tiles_pending_by_access")
    op.execute("DROP INDEX idx_tiles_evictable")
    op.execute("ALTER TABLE tiles ALTER COLUMN access_order DROP DEFAULT")
    op.execute("DROP SEQUENCE tile_access_order_seq")
    op.execute("ALTER TABLE tiles DROP COLUMN access_order")
