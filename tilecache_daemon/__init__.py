"""A gRPC sidecar that keeps the metadata of satellite map tiles in PostgreSQL."""

from tilecache.identity import (
    TILE_NAMESPACE_UUID,
    derive_location_hash,
    derive_tile_id,
)

__version__ = "0.1.0"

__all__ = ["TILE_NAMESPACE_UUID", "__version__", "derive_location_hash", "derive_tile_id"]
