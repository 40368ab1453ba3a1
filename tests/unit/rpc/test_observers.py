"""What observing costs where nobody observes, and what it changes where somebody does."""

from tilecache_daemon.rpc.observers import observed


async def call(request: bytes, _: object) -> bytes:
    return request


def test_a_call_that_nobody_observes_is_left_as_it_is() -> None:
    assert observed(call, []) is call
