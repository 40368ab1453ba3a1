"""Lets a sector be a polygon. Its box stays the box around it, which older versions use."""

from alembic import op

revision = "0009_sector_polygons"
down_revision = "0008_pins"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The rings as they were given, and all edges, each from the south to the north: an array a
    # column, because a row's arrays are then unpacked once for a tile, not once for an edge.
    op.execute("""
        ALTER TABLE sector_classifications
            ADD COLUMN polygon jsonb,
            ADD COLUMN edge_souths double precision[],
            ADD COLUMN edge_wests double precision[],
            ADD COLUMN edge_norths double precision[],
            ADD COLUMN edge_easts double precision[]
    """)


def downgrade() -> None:
    op.execute("""
        ALTER TABLE sector_classifications
            DROP COLUMN edge_easts,
            DROP COLUMN edge_norths,
            DROP COLUMN edge_wests,
            DROP COLUMN edge_souths,
            DROP COLUMN polygon
    """)
