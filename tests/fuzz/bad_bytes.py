"""Strategies for unusual messages and malformed bytes."""

import math
import os
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.tiles import FLIGHT, sha256, tile, tile_key, tile_uuid

EXAMPLES = int(os.environ.get("TILECACHE_FUZZ_EXAMPLES", "20"))
"""Examples for each RPC or validator."""
MAX_DEPTH = 4
MAX_ITEMS = 4

_INT32 = st.sampled_from([0, 1, -1, 2, 22, 23, 2**31 - 1, -(2**31)]) | st.integers(
    -(2**31), 2**31 - 1
)
_INT64 = _INT32 | st.sampled_from([2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
_DOUBLE = (
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 90.0, -90.0, 180.0, -180.0, 1e308])
    | st.floats(-200, 200)
    | st.floats()
)
_TEXT = (
    st.sampled_from(["", "\0", "../x", "/", "a" * 3_000, FLIGHT, FLIGHT.upper(), "18/1/1.jpg"])
    | st.just(sha256("picture"))
    | st.just(tile_uuid(tile_key(18, 1, 1)))
    | st.text(max_size=40)
)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: _DOUBLE,
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def random_messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a type, with values in their fields that are likely to cause errors."""
    return _messages(descriptor, MAX_DEPTH)


@st.composite
def mutated_bytes(draw: st.DrawFn, descriptor: Descriptor) -> bytes:
    """An encoded message with some bytes changed, removed or inserted."""
    encoded = bytearray(draw(random_messages(descriptor)).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(encoded)))
        end = min(len(encoded), start + draw(st.integers(0, 8)))
        encoded[start:end] = draw(st.binary(max_size=8))
    return bytes(encoded)


def any_bytes(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """An encoded message, a mutated one, or random bytes."""
    whole = random_messages(descriptor).map(lambda message: message.SerializeToString())
    return whole | mutated_bytes(descriptor) | st.binary(max_size=200)


@cache
def _messages(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Message]:
    if descriptor.full_name == "tilecache.v1.TileMetadata":
        return _nearly_valid_tiles() | _drawn(descriptor, depth)
    return _drawn(descriptor, depth)


@st.composite
def _drawn(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Message:
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.booleans()):
            _fill(draw, message, field, depth)
    return message


@st.composite
def _nearly_valid_tiles(draw: st.DrawFn) -> Message:
    """A valid tile with one random field."""
    message = tile(tile_key(10, draw(st.integers(0, 30)), draw(st.integers(0, 30))))
    _fill(draw, message, draw(st.sampled_from(list(message.DESCRIPTOR.fields))), MAX_DEPTH)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    values = _values(field, depth)
    if values is None:
        return
    if field.is_repeated:
        drawn = draw(st.lists(values, max_size=MAX_ITEMS))
        _put_repeated(message, field, drawn)
    elif field.message_type:
        getattr(message, field.name).CopyFrom(draw(values))
    else:
        setattr(message, field.name, draw(values))


def _put_repeated(message: Message, field: FieldDescriptor, values: list[Any]) -> None:
    target = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        for entry in values:
            if field.message_type.fields_by_name["value"].message_type:
                target[entry.key].CopyFrom(entry.value)
            else:
                target[entry.key] = entry.value
    else:
        target.extend(values)


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any] | None:
    if field.message_type:
        return _messages(field.message_type, depth - 1) if depth else None
    if field.enum_type:
        return _numbers(field.enum_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _TEXT if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=40)
    return _SCALARS[field.cpp_type]


def _numbers(enum: EnumDescriptor) -> st.SearchStrategy[int]:
    return st.sampled_from([value.number for value in enum.values]) | _INT32
