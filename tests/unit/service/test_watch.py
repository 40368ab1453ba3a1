"""What a watch sends after its client has asked for a block anew."""

from collections.abc import Iterable

from tilecache.mercator import BlockKey
from tilecache_daemon.service.watch import MESSAGE_BYTES, Watch

KEY = BlockKey(18, 31, 62)


class Source:
    """A source in which nothing changes by itself."""

    degraded = False

    def confirmed_until(self, received_by: float) -> float | None:
        return None

    def note_followed(
        self, watch: Watch, new: Iterable[BlockKey], dropped: Iterable[BlockKey]
    ) -> None: ...

    def wake(self) -> None: ...


class Updates:
    """A block in two parts, the first of which fills a message."""

    key = KEY

    def __init__(self, version: bytes) -> None:
        self.version = version

    def since(self, version: bytes) -> list[bytes]:
        return [self.version + b"1" * MESSAGE_BYTES, self.version + b"2"]


async def test_the_rest_of_a_block_is_not_sent_to_a_client_that_wants_it_anew() -> None:
    watch = Watch(Source())
    watch.follow(1, {KEY}, {})
    watch.deliver(Updates(b"old"), None)
    first = await watch.next_message()
    assert first is not None
    assert [block[:4] for block in first.blocks] == [b"old1"]

    watch.follow(2, {KEY}, {KEY: b""})
    watch.deliver(Updates(b"new"), None)

    second, third = await watch.next_message(), await watch.next_message()
    assert second is not None
    assert third is not None
    assert [block[:4] for block in second.blocks + third.blocks] == [b"new1", b"new2"]
    assert (second.number, third.number, third.synced) == (2, 2, True)
