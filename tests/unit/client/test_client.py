"""The client beside servers of the tests' own."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tests.unit.client.servers import empty, refusing, reporting
from tilecache.client import ADMIN_SERVICE, STORE_SERVICE, TileCacheClient
from tilecache.errors import CallError, FieldViolation
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest, QueryTilesRequest

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
TIMEOUT_S = 60
SHORT_S = 2  # long enough for a first answer

Call = Callable[[TileCacheClient], object]


@pytest.fixture
def socket_path(short_directory: Path) -> Path:
    return short_directory / "tilecache.sock"


@pytest.fixture
def client(socket_path: Path) -> Iterator[TileCacheClient]:
    with TileCacheClient(socket_path) as client:
        yield client


@pytest.fixture
def wait_beside(client: TileCacheClient) -> Iterator[Callable[[], "Future[None]"]]:
    """Starts to wait for the store in another thread."""
    with ThreadPoolExecutor() as threads:
        yield lambda: threads.submit(client.wait_until_ready, TIMEOUT_S)


def test_a_daemon_that_becomes_ready_ends_the_wait(
    client: TileCacheClient, socket_path: Path, wait_beside: Callable[[], "Future[None]"]
) -> None:
    with reporting(socket_path, STORE_SERVICE, NOT_SERVING) as health:
        wait = wait_beside()
        assert health.is_watched.wait(TIMEOUT_S)
        assert not client.is_serving()
        assert not wait.done()

        health.set(STORE_SERVICE, SERVING)

        wait.result(TIMEOUT_S)
        assert client.is_serving()


def test_a_daemon_that_restarts_meanwhile_is_waited_for(
    socket_path: Path, wait_beside: Callable[[], "Future[None]"]
) -> None:
    with reporting(socket_path, STORE_SERVICE, NOT_SERVING) as health:
        wait = wait_beside()
        assert health.is_watched.wait(TIMEOUT_S)

    with reporting(socket_path, STORE_SERVICE, SERVING):
        wait.result(TIMEOUT_S)


def wait_in_vain(client: TileCacheClient, service: str = STORE_SERVICE) -> CallError:
    """The error of a wait, whose message names what was waited for."""
    with pytest.raises(CallError) as caught:
        client.wait_until_ready(SHORT_S, service)
    assert f"{service} on {client.socket_path} is not ready" in str(caught.value)
    return caught.value


def test_waiting_for_nobody_says_that_there_is_no_socket(client: TileCacheClient) -> None:
    error = wait_in_vain(client)

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "No such file or directory" in error.message


@pytest.mark.parametrize(
    ("service", "state"), [(STORE_SERVICE, "NOT_SERVING"), (ADMIN_SERVICE, "SERVICE_UNKNOWN")]
)
def test_waiting_in_vain_says_the_last_known_state(
    client: TileCacheClient, socket_path: Path, service: str, state: str
) -> None:
    with reporting(socket_path, STORE_SERVICE, NOT_SERVING):
        error = wait_in_vain(client, service)

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert state in error.message


def test_waiting_for_a_server_without_health_ends_at_once(
    client: TileCacheClient, socket_path: Path
) -> None:
    with empty(socket_path), pytest.raises(CallError, match=r"is not ready.*Method not") as caught:
        client.wait_until_ready(TIMEOUT_S * 60)

    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


def test_the_health_of_nobody_is_a_call_error(client: TileCacheClient) -> None:
    with pytest.raises(CallError) as caught:
        client.is_serving()

    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def get_tile(client: TileCacheClient, request: Any = None) -> object:
    return client.store.GetTile(request or GetTileRequest(), timeout=TIMEOUT_S)


def query_tiles(client: TileCacheClient, request: Any = None) -> object:
    return list(client.store.QueryTiles(request or QueryTilesRequest(), timeout=TIMEOUT_S))


def get_tile_with_call(client: TileCacheClient, request: Any = None) -> object:
    return client.store.GetTile.with_call(request or GetTileRequest(), timeout=TIMEOUT_S)


all_kinds_of_calls = pytest.mark.parametrize(
    "call", [get_tile, get_tile_with_call, query_tiles], ids=["unary", "with_call", "stream"]
)


def status(*details: Message) -> Status:
    """A status as the daemon sends it."""
    packed = [AnyMessage() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return Status(code=3, message="refused", details=packed)


@all_kinds_of_calls
def test_a_refusal_carries_its_details(
    client: TileCacheClient, socket_path: Path, call: Call
) -> None:
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(1_250)
    sent = status(
        ErrorInfo(reason="INVALID_REQUEST", domain="tilecache", metadata={"limit": "4096"}),
        BadRequest(field_violations=[{"field": "tile.key.x", "description": "x is -1"}]),
        retry,
    )

    with refusing(socket_path, sent), pytest.raises(CallError, match=r"^refused$") as caught:
        call(client)

    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_REQUEST"
    assert error.facts == {"limit": "4096"}
    assert error.violations == [FieldViolation("tile.key.x", "x is -1")]
    assert error.retry_after_s == 1.25


@all_kinds_of_calls
@pytest.mark.parametrize(
    "details",
    [b"", b"\xff", b"\x1a\x05abc", status().SerializeToString(), b"x" * 4_000],
    ids=["none", "a broken status", "one cut short", "no details", "no status"],
)
def test_a_refusal_with_broken_details_is_a_refusal_all_the_same(
    client: TileCacheClient, socket_path: Path, call: Call, details: bytes
) -> None:
    with refusing(socket_path, details), pytest.raises(CallError, match=r"^refused$") as caught:
        call(client)

    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.reason, caught.value.violations) == ("", [])


@all_kinds_of_calls
def test_details_that_are_too_long_for_grpc_are_a_call_error(
    client: TileCacheClient, socket_path: Path, call: Call
) -> None:
    long = status(ErrorInfo(reason="LONG", metadata={"text": "x" * 100_000}))

    with refusing(socket_path, long), pytest.raises(CallError) as caught:
        call(client)

    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@all_kinds_of_calls
def test_the_code_of_the_call_counts_and_not_the_one_of_its_details(
    client: TileCacheClient, socket_path: Path, call: Call
) -> None:
    sent = status(ErrorInfo(reason="OVERLOADED"))

    with (
        refusing(socket_path, sent, grpc.StatusCode.RESOURCE_EXHAUSTED),
        pytest.raises(CallError) as caught,
    ):
        call(client)

    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "OVERLOADED"


@all_kinds_of_calls
def test_a_request_that_cannot_be_sent_is_a_call_error(
    client: TileCacheClient, call: Callable[[TileCacheClient, object], object]
) -> None:
    with pytest.raises(CallError) as caught:
        call(client, object())

    assert caught.value.code is grpc.StatusCode.INTERNAL
