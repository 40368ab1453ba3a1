"""Observers are notified of the beginning and end of calls."""

from collections.abc import Callable

import grpc
import pytest

from tilecache_daemon.rpc.observers import observed


async def call(request: bytes, _: object) -> bytes:
    return request


def recorder(name: str, events: list[str]) -> Callable[[object], Callable[[grpc.StatusCode], None]]:
    def begin(_: object) -> Callable[[grpc.StatusCode], None]:
        events.append(f"{name} begins")
        return lambda code: events.append(f"{name} ends with {code.name}")

    return begin


def test_without_observers_a_call_is_not_wrapped() -> None:
    assert observed(call, []) is call


async def test_each_observer_is_notified_of_the_beginning_and_the_end() -> None:
    events: list[str] = []
    watched = observed(call, [recorder("first", events), recorder("second", events)])

    assert await watched(b"answer", None) == b"answer"

    assert sorted(events) == [
        *("first begins", "first ends with OK"),
        *("second begins", "second ends with OK"),
    ]


async def test_observers_receive_the_code_of_an_error_that_is_raised() -> None:
    events: list[str] = []

    class Context:
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.NOT_FOUND

    async def fail(_: bytes, __: object) -> bytes:
        raise LookupError

    with pytest.raises(LookupError):
        await observed(fail, [recorder("call", events)])(b"", Context())

    assert events == ["call begins", "call ends with NOT_FOUND"]
