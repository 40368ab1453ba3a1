"""Malformed requests to every RPC: a clean status that reveals no internals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilecache_daemon
from tests.daemon_process import DaemonProcess
from tests.faults.load import open_channel
from tests.fuzz.bad_bytes import EXAMPLES, any_bytes
from tilecache_daemon.rpc.server import ADMIN, STORE

METHODS = {method.full_name: method for service in (STORE, ADMIN) for method in service.methods}
TIMEOUT_S = 60.0
"""The daemon answers or refuses any request within this time."""
CLEAN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
INTERNALS = ("Traceback", 'File "', ".py", "psycopg", str(Path(tilecache_daemon.__file__).parent))


@pytest.fixture(scope="module")
def channel(shared_daemon: DaemonProcess) -> Iterator[grpc.Channel]:
    """A channel to the admin socket, which serves both services."""
    with open_channel(shared_daemon.admin_socket_path) as opened:
        yield opened


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_malformed_requests_get_a_clean_status(
    name: str, channel: grpc.Channel, shared_daemon: DaemonProcess, data: st.DataObject
) -> None:
    method = METHODS[name]
    many = st.lists(any_bytes(method.input_type), min_size=1, max_size=3)
    code = send(channel, method, data.draw(many))
    assert code in CLEAN
    assert shared_daemon.client.is_serving()


def send(channel: grpc.Channel, method: MethodDescriptor, messages: list[bytes]) -> grpc.StatusCode:
    """The code of a call whose requests are these bytes."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            answers: Any = channel.stream_stream(path)(iter(messages), timeout=TIMEOUT_S)
        elif method.server_streaming:
            answers = channel.unary_stream(path)(messages[0], timeout=TIMEOUT_S)
        else:
            answers = [channel.unary_unary(path)(messages[0], timeout=TIMEOUT_S)]
        for answer in answers:
            GetMessageClass(method.output_type).FromString(answer)
    except grpc.RpcError as error:
        check_refusal(error)
        return error.code()
    return grpc.StatusCode.OK


def check_refusal(error: Any) -> None:
    """A refusal has a reason and details, and reveals nothing else."""
    text = f"{error.details()} {error.trailing_metadata()}"
    assert not [part for part in INTERNALS if part in text], text
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} {error.details()} has no details"
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert [detail for detail in status.details if detail.Unpack(info)]
    assert info.domain == "tilecache"
    assert info.reason
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        assert [detail for detail in status.details if detail.Unpack(bad_request)]
        assert all(violation.field for violation in bad_request.field_violations)
