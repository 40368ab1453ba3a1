"""The mapping of errors to gRPC statuses: one table of codes and retry delays.

gRPC refuses an error whose metadata is too large, and its own error has no details. So a
status takes at most MAX_STATUS_BYTES, whatever texts of the caller it repeats.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final, NamedTuple
from urllib.parse import quote

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tilecache.errors import FieldViolation
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
    errors.PinNotFoundError: ErrorStatus(code_pb2.NOT_FOUND),
    errors.FlightNotFoundError: ErrorStatus(code_pb2.NOT_FOUND),
    errors.ContentConflictError: ErrorStatus(code_pb2.ALREADY_EXISTS),
    errors.TileTooOldError: ErrorStatus(code_pb2.FAILED_PRECONDITION),
    errors.FilePendingRemovalError: ErrorStatus(code_pb2.FAILED_PRECONDITION),
    errors.WriteConflictError: ErrorStatus(code_pb2.ABORTED, _SOON),
    errors.SchemaMismatchError: ErrorStatus(code_pb2.FAILED_PRECONDITION),
    errors.StorageCeilingError: ErrorStatus(code_pb2.RESOURCE_EXHAUSTED, _LATER),
    errors.OverloadedError: ErrorStatus(code_pb2.RESOURCE_EXHAUSTED, _SOON),
    errors.DatabaseFullError: ErrorStatus(code_pb2.RESOURCE_EXHAUSTED, _LATER),
    errors.PeerNotAllowedError: ErrorStatus(code_pb2.PERMISSION_DENIED),
    errors.ShuttingDownError: ErrorStatus(code_pb2.UNAVAILABLE, _LATER),
    errors.DatabaseUnavailableError: ErrorStatus(code_pb2.UNAVAILABLE, _LATER),
    errors.QueryCanceledError: ErrorStatus(code_pb2.DEADLINE_EXCEEDED),
}


MAX_STATUS_BYTES: Final = 4_096
"""The bytes of a status on the wire: the message, percent-encoded, and the details in base64."""
MAX_TEXT_BYTES: Final = 800
"""The bytes of a message, and of all violations together, percent-encoded."""
_FIELD_BYTES: Final = 100
_FACT_BYTES: Final = 80
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""The characters that gRPC does not percent-encode in a message."""


def status_of(error: TileCacheError) -> status_pb2.Status:
    """The gRPC status of an error, with its details."""
    message, violations = str(error), _reported_violations(error)
    facts = {name: shorten(text, _FACT_BYTES) for name, text in error.facts.items()}
    if isinstance(error, InvalidRequestError):
        message = str(InvalidRequestError(*violations))
        if unreported := len(error.violations) - len(violations):
            facts["unreported_violations"] = str(unreported)
            message += f"; and {unreported} more"
    return status_pb2.Status(
        code=TABLE[type(error)].code,
        message=shorten(message, MAX_TEXT_BYTES),
        details=[_pack(detail) for detail in _details(error, facts, violations)],
    )


def shorten(text: str, most_bytes: int) -> str:
    """The text, with an ellipsis in its middle if its percent-encoding has more bytes."""
    kept = most_bytes // 2
    if len(text) <= most_bytes and _encoded_size(text) <= most_bytes:
        return text
    while True:
        shortened = f"{text[:kept]}…{text[-kept:]}"
        if _encoded_size(shortened) <= most_bytes or kept == 1:
            return shortened
        kept -= kept // 10 or 1


def _encoded_size(text: str) -> int:
    return len(quote(text, safe=_PRINTABLE, errors="replace"))


def _reported_violations(error: TileCacheError) -> list[FieldViolation]:
    """The first violations, as many as fit, shortened."""
    reported: list[FieldViolation] = []
    if isinstance(error, InvalidRequestError):
        bytes_left = MAX_TEXT_BYTES
        for violation in error.violations:
            field = shorten(violation.field, _FIELD_BYTES)
            text_bytes = MAX_TEXT_BYTES // 2 - _FIELD_BYTES
            shown = FieldViolation(field, shorten(violation.description, text_bytes))
            bytes_left -= sum(map(_encoded_size, shown)) + len(error.reason)
            if bytes_left < 0 and reported:
                break
            reported.append(shown)
    return reported


def internal_status() -> status_pb2.Status:
    """The status of an internal error. It reveals nothing that could help an attacker."""
    info = error_details_pb2.ErrorInfo(reason=INTERNAL_REASON, domain=DOMAIN)
    return status_pb2.Status(
        code=code_pb2.INTERNAL,
        message="internal error; see the daemon's log",
        details=[_pack(info)],
    )


def _details(
    error: TileCacheError, facts: dict[str, str], violations: Sequence[FieldViolation]
) -> Iterator[Message]:
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    if violations:
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=violation.field,
                    description=violation.description,
                    reason=error.reason,
                )
                for violation in violations
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
