"""The mapping of errors to gRPC statuses."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from google.rpc.error_details_pb2 import BadRequest
from hypothesis import given
from hypothesis import strategies as st

from tilecache.errors import FieldViolation
from tilecache_daemon import errors
from tilecache_daemon.errors import InvalidRequestError, TileCacheError
from tilecache_daemon.rpc.calls import CODES
from tilecache_daemon.rpc.status import (
    MAX_STATUS_BYTES,
    TABLE,
    internal_status,
    shorten,
    status_of,
)


def subclasses(kind: type[TileCacheError]) -> Iterator[type[TileCacheError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


ERRORS = sorted(set(subclasses(TileCacheError)), key=lambda kind: kind.__name__)


def example(kind: type[TileCacheError]) -> TileCacheError:
    if issubclass(kind, InvalidRequestError):
        return kind(FieldViolation("tile.key.zoom", "is 23"), FieldViolation("tile.key.x", "is -1"))
    return kind("a message", tile_uuid="17f7ac7e", count=3)


def detail(status: status_pb2.Status, kind: type[Message]) -> Message | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def test_each_error_is_in_the_table() -> None:
    assert set(TABLE) == set(ERRORS)


def test_reasons_are_unique() -> None:
    reasons = [kind.reason for kind in ERRORS]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper() and reason.isascii() for reason in reasons)


def test_codes_are_grpc_codes_of_expected_errors() -> None:
    for status in TABLE.values():
        assert status.code in CODES
        assert status.code not in (code_pb2.OK, code_pb2.UNKNOWN, code_pb2.INTERNAL)


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_carries_its_reason_and_facts(kind: type[TileCacheError]) -> None:
    error = example(kind)
    status = status_of(error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (kind.reason, "tilecache")
    assert dict(info.metadata) == error.facts
    assert status.message == str(error)


@pytest.mark.parametrize("kind", ERRORS)
def test_retryable_errors_and_no_others_have_a_retry_delay(
    kind: type[TileCacheError],
) -> None:
    status = status_of(example(kind))
    hint = detail(status, error_details_pb2.RetryInfo)
    is_retryable = status.code in (
        code_pb2.UNAVAILABLE,
        code_pb2.RESOURCE_EXHAUSTED,
        code_pb2.ABORTED,
    )
    assert (hint is not None) is is_retryable
    if isinstance(hint, error_details_pb2.RetryInfo):
        assert hint.retry_delay.ToMilliseconds() > 0


@pytest.mark.parametrize("kind", [errors.InvalidRequestError, errors.LimitExceededError])
def test_an_invalid_request_lists_its_violations(kind: type[TileCacheError]) -> None:
    status = status_of(example(kind))
    bad = detail(status, error_details_pb2.BadRequest)
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(item.field, item.description, item.reason) for item in bad.field_violations] == [
        ("tile.key.zoom", "is 23", kind.reason),
        ("tile.key.x", "is -1", kind.reason),
    ]


def test_an_internal_error_reveals_nothing() -> None:
    status = internal_status()
    info = detail(status, error_details_pb2.ErrorInfo)
    assert status.code == code_pb2.INTERNAL
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("INTERNAL", "tilecache")


@given(st.lists(st.tuples(st.text(), st.text(max_size=3_000)), min_size=1, max_size=20))
def test_a_status_is_bounded_and_counts_what_it_leaves_out(texts: list[tuple[str, str]]) -> None:
    status = status_of(InvalidRequestError(*(FieldViolation(*pair) for pair in texts)))

    encoded = len(quote(status.message, errors="replace")) + status.ByteSize() * 4 // 3
    info, bad = detail(status, error_details_pb2.ErrorInfo), detail(status, BadRequest)
    assert encoded <= MAX_STATUS_BYTES
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(bad, BadRequest)
    left_out = int(info.metadata["unreported_violations"] or 0)
    assert len(bad.field_violations) + left_out == len(texts)
    assert bad.field_violations


def test_a_text_is_shortened_in_its_middle() -> None:
    assert shorten("a" * 50 + "b" * 50, 29) == "aaaaaaaaaa…bbbbbbbbbb"
    assert shorten("short", 29) == "short"
