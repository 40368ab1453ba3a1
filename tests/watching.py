"""A WatchTiles stream, message by message."""

from collections.abc import Iterable, Iterator
from queue import SimpleQueue

from tests.tiles import ZOOM
from tilecache.client import TileCacheClient
from tilecache.mercator import BlockKey
from tilecache.v1.tile_metadata_store_pb2 import (
    BlockUpdate,
    HeldBlock,
    Region,
    WatchedArea,
    WatchTilesRequest,
    WatchTilesResponse,
)

STREAM_TIMEOUT_S = 120.0


class Stream:
    """One stream. Its requests are numbered."""

    def __init__(self, client: TileCacheClient) -> None:
        self.number = 0
        self._requests: SimpleQueue[WatchTilesRequest | None] = SimpleQueue()
        self._responses = client.store.WatchTiles(
            iter(self._requests.get, None), timeout=STREAM_TIMEOUT_S
        )

    def follow(self, *regions: Region, held: Iterable[HeldBlock] = ()) -> None:
        """Follows regions of ZOOM."""
        self.number += 1
        areas = [WatchedArea(zoom=ZOOM, region=region) for region in regions]
        self.send(WatchTilesRequest(number=self.number, areas=areas, held=held))

    def send(self, request: WatchTilesRequest) -> None:
        self._requests.put(request)

    def end_requests(self) -> None:
        """The client has nothing more to say."""
        self._requests.put(None)

    def __iter__(self) -> Iterator[WatchTilesResponse]:
        return self._responses

    def blocks_until_synced(self) -> list[BlockUpdate]:
        """The blocks that arrive until all of the last request is sent."""
        blocks: list[BlockUpdate] = []
        for response in self:
            blocks += response.blocks
            if response.synced and response.number == self.number:
                return blocks
        raise AssertionError("the stream ended before it was synced")

    def next_block(self) -> BlockUpdate:
        """The next block that arrives; it must be the only one of its message."""
        for response in self:
            if response.blocks:
                (block,) = response.blocks
                return block
        raise AssertionError("the stream ended before a block came")

    def heartbeats(self) -> Iterator[WatchTilesResponse]:
        """The messages with a heartbeat."""
        return (response for response in self if response.HasField("heartbeat"))

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()


def key_of(block: BlockUpdate) -> BlockKey:
    """The key of an update's block."""
    return BlockKey(block.zoom, block.block_x, block.block_y)


def held(block: BlockUpdate) -> HeldBlock:
    """What a client that has applied an update holds."""
    return HeldBlock(
        zoom=block.zoom, block_x=block.block_x, block_y=block.block_y, version=block.version
    )
