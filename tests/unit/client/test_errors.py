"""Reading a gRPC error, whatever its details are."""

from typing import Any

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from tilecache.errors import CallError, call_error

KINDS = [message.DESCRIPTOR.full_name for message in (ErrorInfo, BadRequest, RetryInfo)]


class Refusal(grpc.RpcError):
    """A gRPC error as a call raises it."""

    def __init__(self, trailing_metadata: Any, details: str | None = "refused") -> None:
        self._trailing_metadata = trailing_metadata
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.NOT_FOUND

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing_metadata


type_urls = st.sampled_from(KINDS).map("type.googleapis.com/{}".format) | st.text()
statuses = st.builds(
    lambda details: Status(details=[{"type_url": url, "value": value} for url, value in details]),
    st.lists(st.tuples(type_urls, st.binary())),
).map(Status.SerializeToString)


@given(st.binary() | statuses)
def test_no_details_hide_what_the_call_says(details: bytes) -> None:
    error = call_error(Refusal((("grpc-status-details-bin", details),)))

    assert isinstance(error, CallError)
    assert (error.code, error.message) == (grpc.StatusCode.NOT_FOUND, "refused")


def test_an_error_without_text_or_metadata_has_the_name_of_its_code() -> None:
    error = call_error(Refusal(None, details=None))

    assert str(error) == "NOT_FOUND"
    assert (error.reason, error.facts, error.violations, error.retry_after_s) == ("", {}, [], None)


def test_other_metadata_is_passed_over() -> None:
    info = {"type_url": "type.googleapis.com/google.rpc.ErrorInfo", "value": b""}
    details = Status(details=[info, {"type_url": "type.example/google.rpc.Help"}])

    error = call_error(
        Refusal((("server", "x"), ("grpc-status-details-bin", details.SerializeToString())))
    )

    assert error.message == "refused"


def test_errors_can_be_told_apart_and_put_into_sets() -> None:
    first, second = (CallError(grpc.StatusCode.ABORTED, "again") for _ in range(2))

    assert first != second
    assert len({first, second}) == 2
