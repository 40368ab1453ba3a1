"""The error that a failed call raises, and how it is read from gRPC's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError

from tilecache.status.v1.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo, Status

_DETAILS_KEY: Final = "grpc-status-details-bin"


class FieldViolation(NamedTuple):
    """A bad field of a request, for example `tiles[3].key.zoom`."""

    field: str
    description: str


@dataclass(eq=False)
class CallError(Exception):
    """A call that the daemon refused, or that did not reach it."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """Stable, for programs; empty if the daemon did not answer."""
    violations: list[FieldViolation] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message


def call_error(error: grpc.RpcError) -> CallError:
    """The CallError for a gRPC error, with its details as far as they can be read."""
    call = cast(grpc.Call, error)
    failure = CallError(call.code(), call.details() or call.code().name)
    # Code and message hold without the details. Protobuf's pure Python runtime raises
    # UnicodeDecodeError, which is a ValueError, for bad text.
    with suppress(DecodeError, ValueError):
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS_KEY:
                _add_details(failure, cast(bytes, value))
    return failure


def _add_details(failure: CallError, serialized: bytes) -> None:
    for detail in Status.FromString(serialized).details:
        kind = detail.type_url.rpartition("/")[2]
        if kind == "google.rpc.ErrorInfo":
            info = ErrorInfo.FromString(detail.value)
            failure.reason, failure.facts = info.reason, dict(info.metadata)
        elif kind == "google.rpc.BadRequest":
            failure.violations = [
                FieldViolation(violation.field, violation.description)
                for violation in BadRequest.FromString(detail.value).field_violations
            ]
        elif kind == "google.rpc.RetryInfo":
            delay = RetryInfo.FromString(detail.value).retry_delay
            failure.retry_after_s = delay.seconds + delay.nanos / 1e9
