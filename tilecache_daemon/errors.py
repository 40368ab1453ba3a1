"""What can go wrong, in the store's own words.

Each error carries a stable `reason` for machines and its facts in `facts`.
How an error is told over the wire is decided in `rpc/status.py` alone.
"""

from collections.abc import Sequence
from typing import ClassVar

from tilecache.errors import FieldViolation


class TileCacheError(Exception):
    """The base of what the store refuses or cannot do."""

    reason: ClassVar[str]

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(value) for name, value in facts.items()}


class InvalidRequestError(TileCacheError):
    """The request can never succeed as it is."""

    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{field}: {text}" for field, text in violations))
        self.violations: Sequence[FieldViolation] = violations

    def within(self, field: str) -> "InvalidRequestError":
        """The same of a message that is itself a field of the request."""
        return type(self)(
            *(
                FieldViolation(f"{field}.{violation.field}", violation.description)
                for violation in self.violations
            )
        )


class LimitExceededError(InvalidRequestError):
    """The request is larger than a published limit."""

    reason = "LIMIT_EXCEEDED"


class TileNotFoundError(TileCacheError):
    """There is no such tile."""

    reason = "TILE_NOT_FOUND"


class SectorNotFoundError(TileCacheError):
    """There is no sector of that name."""

    reason = "SECTOR_NOT_FOUND"


class ContentConflictError(TileCacheError):
    """Another content is stored under the same key."""

    reason = "CONTENT_CONFLICT"


class TileTooOldError(TileCacheError):
    """The tile's sector rejects a capture of that age."""

    reason = "TILE_TOO_OLD"


class StorageCeilingError(TileCacheError):
    """The tile would take the cache above its configured ceiling."""

    reason = "STORAGE_CEILING"


class FilePendingRemovalError(TileCacheError):
    """The tile's file is listed for removal; whoever removes it would take the new one."""

    reason = "FILE_PENDING_REMOVAL"


class WriteConflictError(TileCacheError):
    """Two writers got in each other's way; one of them has to begin again."""

    reason = "WRITE_CONFLICT"


class OverloadedError(TileCacheError):
    """More is asked at once than the daemon takes on."""

    reason = "OVERLOADED"


class PeerNotAllowedError(TileCacheError):
    """The peer's certificate is good, but its name is not on the list."""

    reason = "PEER_NOT_ALLOWED"


class DatabaseUnavailableError(TileCacheError):
    """PostgreSQL does not answer at the moment."""

    reason = "DATABASE_UNAVAILABLE"


class DatabaseFullError(TileCacheError):
    """PostgreSQL has no room left."""

    reason = "DATABASE_FULL"


class QueryCanceledError(TileCacheError):
    """The query ran longer than it may."""

    reason = "QUERY_CANCELED"


class SchemaMismatchError(TileCacheError):
    """The database does not have the schema that this version works with."""

    reason = "SCHEMA_MISMATCH"


class MigrationError(Exception):
    """The schema could not be brought to what this version works with.

    Outside the TileCacheError family: it happens before there is a store.
    """
