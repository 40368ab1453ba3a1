"""The errors of the store's domain.

Each error has a stable `reason` for machines and details in `facts`. `rpc/status.py`
alone maps errors to gRPC statuses.
"""

from collections.abc import Sequence
from typing import ClassVar

from tilecache.errors import FieldViolation


class TileCacheError(Exception):
    """The base class of all errors that a caller may receive."""

    reason: ClassVar[str]

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(value) for name, value in facts.items()}


class InvalidRequestError(TileCacheError):
    """The request is invalid: repeating it unchanged cannot succeed."""

    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{field}: {text}" for field, text in violations))
        self.violations: Sequence[FieldViolation] = violations

    def within(self, field: str) -> "InvalidRequestError":
        """The same error with `field.` before each field's name, for a nested message."""
        return type(self)(
            *(
                FieldViolation(f"{field}.{violation.field}", violation.description)
                for violation in self.violations
            )
        )


class LimitExceededError(InvalidRequestError):
    """The request, or its answer, exceeds a published limit."""

    reason = "LIMIT_EXCEEDED"


class TileNotFoundError(TileCacheError):
    """No tile has this id."""

    reason = "TILE_NOT_FOUND"


class SectorNotFoundError(TileCacheError):
    """No sector has this name."""

    reason = "SECTOR_NOT_FOUND"


class PinNotFoundError(TileCacheError):
    """No pin has this name."""

    reason = "PIN_NOT_FOUND"


class FlightNotFoundError(TileCacheError):
    """The name and times of no such flight are recorded."""

    reason = "FLIGHT_NOT_FOUND"


class ContentConflictError(TileCacheError):
    """Different content is stored under the same key."""

    reason = "CONTENT_CONFLICT"


class TileTooOldError(TileCacheError):
    """The rule of the tile's sector rejects captures of this age."""

    reason = "TILE_TOO_OLD"


class StorageCeilingError(TileCacheError):
    """Storing the tile would exceed the configured storage ceiling."""

    reason = "STORAGE_CEILING"


class FilePendingRemovalError(TileCacheError):
    """The tile's file is listed for removal, so a new tile must not use its path."""

    reason = "FILE_PENDING_REMOVAL"


class WriteConflictError(TileCacheError):
    """The transaction conflicted with another one and may be retried."""

    reason = "WRITE_CONFLICT"


class OverloadedError(TileCacheError):
    """Too many calls or writes are in progress."""

    reason = "OVERLOADED"


class PeerNotAllowedError(TileCacheError):
    """The peer's certificate is valid, but none of its names is on the allow list."""

    reason = "PEER_NOT_ALLOWED"


class ShuttingDownError(TileCacheError):
    """The daemon stops, so it has ended the stream. The next one can be called soon."""

    reason = "SHUTTING_DOWN"


class DatabaseUnavailableError(TileCacheError):
    """PostgreSQL does not answer, or accepts no writes."""

    reason = "DATABASE_UNAVAILABLE"


class DatabaseFullError(TileCacheError):
    """PostgreSQL has run out of disk space, memory or another bounded resource."""

    reason = "DATABASE_FULL"


class QueryCanceledError(TileCacheError):
    """The query exceeded the statement timeout."""

    reason = "QUERY_CANCELED"


class SchemaMismatchError(TileCacheError):
    """The database's schema is not the one that this version requires."""

    reason = "SCHEMA_MISMATCH"


class MigrationError(Exception):
    """The schema could not be migrated.

    Not a TileCacheError: migrations run before the store opens.
    """
