"""The client's own status messages have the wire format of the ones that the daemon sends."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import error_details_pb2 as google_details
from google.rpc import status_pb2 as google_status
from grpc_health.v1 import health_pb2 as grpc_health

from tilecache.status.v1 import error_details_pb2, health_pb2

PAIRS = [
    (error_details_pb2.Status, google_status.Status),
    (error_details_pb2.ErrorInfo, google_details.ErrorInfo),
    (error_details_pb2.BadRequest, google_details.BadRequest),
    (error_details_pb2.RetryInfo, google_details.RetryInfo),
    (health_pb2.HealthCheckRequest, grpc_health.HealthCheckRequest),
    (health_pb2.HealthCheckResponse, grpc_health.HealthCheckResponse),
]


@pytest.mark.parametrize(
    ("own", "original"),
    [(own.DESCRIPTOR, original.DESCRIPTOR) for own, original in PAIRS],
    ids=[own.DESCRIPTOR.name for own, _ in PAIRS],
)
def test_a_message_is_read_as_the_original(own: Descriptor, original: Descriptor) -> None:
    assert_same_wire_format(own, original)


def assert_same_wire_format(own: Descriptor, original: Descriptor) -> None:
    """That each field of `own` is one of the original."""
    assert own.name == original.name
    for field in own.fields:
        other = original.fields_by_number[field.number]
        assert shape(field) == shape(other)
        if field.message_type and field.message_type.file is own.file:
            assert_same_wire_format(field.message_type, other.message_type)


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    return field.name, field.type, field.is_repeated


def test_all_messages_are_compared() -> None:
    files = error_details_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR
    names = {name for file in files for name in file.message_types_by_name}

    assert names == {own.DESCRIPTOR.name for own, _ in PAIRS}


def test_the_states_of_health_have_the_originals_numbers() -> None:
    own = health_pb2.HealthCheckResponse.ServingStatus.items()
    original = dict(grpc_health.HealthCheckResponse.ServingStatus.items())

    assert dict(own) == {
        f"SERVING_STATUS_{'UNSPECIFIED' if name == 'UNKNOWN' else name}": number
        for name, number in original.items()
    }
