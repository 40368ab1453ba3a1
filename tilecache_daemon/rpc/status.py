"""The mapping of errors to gRPC statuses: one table of codes and retry delays."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final, NamedTuple

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tilecache_daemon import errors
from tilecache_daemon.errors import InvalidRequestError, TileCacheError

DOMAIN: Final = "tilecache"
INTERNAL_REASON: Final = "INTERNAL"


class ErrorStatus(NamedTuple):
    """A gRPC code, and the delay after which to retry (None: do not retry)."""

    code: int
    retry_after: timedelta | None = None


_SOON: Final = timedelta(milliseconds=200)
_LATER: Final = timedelta(seconds=1)

TABLE: Final[dict[type[TileCacheError], ErrorStatus]] = {
    errors.InvalidRequestError: ErrorStatus(code_pb2.INVALID_ARGUMENT),
    errors.LimitExceededError: ErrorStatus(code_pb2.INVALID_ARGUMENT),
    errors.TileNotFoundError: ErrorStatus(code_pb2.NOT_FOUND),
    errors.SectorNotFoundError: ErrorStatus(code_pb2.NOT_FOUND),
    errors.ContentConflictError: ErrorStatus(code_pb2.ALREADY_EXISTS),
    errors.TileTooOldError: ErrorStatus(code_pb2.FAILED_PRECONDITION),
    errors.FilePendingRemovalError: ErrorStatus(code_pb2.FAILED_PRECONDITION),
    errors.WriteConflictError: ErrorStatus(code_pb2.ABORTED, _SOON),
    errors.SchemaMismatchError: ErrorStatus(code_pb2.FAILED_PRECONDITION),
    errors.StorageCeilingError: ErrorStatus(code_pb2.RESOURCE_EXHAUSTED, _LATER),
    errors.OverloadedError: ErrorStatus(code_pb2.RESOURCE_EXHAUSTED, _SOON),
    errors.DatabaseFullError: ErrorStatus(code_pb2.RESOURCE_EXHAUSTED, _LATER),
    errors.PeerNotAllowedError: ErrorStatus(code_pb2.PERMISSION_DENIED),
    errors.DatabaseUnavailableError: ErrorStatus(code_pb2.UNAVAILABLE, _LATER),
    errors.QueryCanceledError: ErrorStatus(code_pb2.DEADLINE_EXCEEDED),
}


def status_of(error: TileCacheError) -> status_pb2.Status:
    """The gRPC status of an error, with its details."""
    return status_pb2.Status(
        code=TABLE[type(error)].code,
        message=str(error),
        details=[_pack(detail) for detail in _details(error)],
    )


def internal_status() -> status_pb2.Status:
    """The status of an internal error. It reveals nothing that could help an attacker."""
    info = error_details_pb2.ErrorInfo(reason=INTERNAL_REASON, domain=DOMAIN)
    return status_pb2.Status(
        code=code_pb2.INTERNAL,
        message="internal error; see the daemon's log",
        details=[_pack(info)],
    )


def _details(error: TileCacheError) -> Iterator[Message]:
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.facts)
    if isinstance(error, InvalidRequestError):
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=violation.field,
                    description=violation.description,
                    reason=error.reason,
                )
                for violation in error.violations
            ]
        )
    if retry_after := TABLE[type(error)].retry_after:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(retry_after)
        yield retry


def _pack(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
