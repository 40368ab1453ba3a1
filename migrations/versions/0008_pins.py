"""Adds pins: areas whose tiles neither an eviction nor a deletion takes."""

from alembic import op

revision = "0008_pins"
down_revision = "0007_valid_times"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The region as its writer gave it; what it covers is in tile_pin_blocks.
    op.execute("""
        CREATE TABLE tile_pins (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name text NOT NULL CONSTRAINT uq_tile_pins_name UNIQUE,
            region bytea NOT NULL,
            zooms integer[] NOT NULL,
            cell_count bigint NOT NULL,
            created_at timestamptz NOT NULL,
            expires_at timestamptz,
            ended boolean NOT NULL DEFAULT false
        )
    """)
    # A bit for each cell of a block of 32 x 32, row by row, the lowest bit of a byte first. So a
    # tile is looked up by its block, whatever the shape of the region.
    op.execute("""
        CREATE TABLE tile_pin_blocks (
            zoom integer NOT NULL,
            x integer NOT NULL,
            y integer NOT NULL,
            pin_id bigint NOT NULL REFERENCES tile_pins ON DELETE CASCADE,
            cells bytea NOT NULL
                CONSTRAINT ck_tile_pin_blocks_cells CHECK (length(cells) = 128),
            PRIMARY KEY (zoom, x, y, pin_id)
        )
    """)
    op.execute("CREATE INDEX idx_tile_pin_blocks_pin_id ON tile_pin_blocks (pin_id)")


def downgrade() -> None:
    op.execute("DROP TABLE tile_pin_blocks")
    op.execute("DROP TABLE tile_pins")
