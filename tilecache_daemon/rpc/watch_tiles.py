"""The stream of a WatchTiles call: requests are read while updates are sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.mercator import BlockKey, blocks_in
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon import tasks
from tilecache_daemon.errors import InvalidRequestError, LimitExceededError
from tilecache_daemon.models import Limits
from tilecache_daemon.rpc import regions, requests
from tilecache_daemon.service.regions import bound_cells_aside
from tilecache_daemon.service.watch import Message, Watch
from tilecache_daemon.service.watching import WatchService

_MAX_VERSION_BYTES: Final = 64


class WatchTiles:
    """One WatchTiles call."""

    def __init__(self, watching: WatchService, limits: Limits) -> None:
        self._watching = watching
        self._limits = limits

    async def run(self, messages: AsyncIterator[pb.WatchTilesRequest]) -> AsyncIterator[bytes]:
        """Yields responses until the client ends its stream. Raises InvalidRequestError for a
        bad request, and ShuttingDownError when the daemon stops."""
        with self._watching.open() as watch:
            reader = asyncio.create_task(self._read(messages, watch))
            reader.add_done_callback(lambda _: watch.wake())
            try:
                while not reader.done():
                    if message := await watch.next_message():
                        yield _packed(message)
                await reader
            finally:
                with suppress(Exception):
                    await tasks.end(reader)

    async def _read(self, messages: AsyncIterator[pb.WatchTilesRequest], watch: Watch) -> None:
        async for message in messages:
            blocks = await self._blocks(message)
            watch.follow(message.number, blocks, _held(message, blocks))

    async def _blocks(self, message: pb.WatchTilesRequest) -> set[BlockKey]:
        """The blocks that the areas of a request cover."""
        if message.areas:
            requests.check_count("areas", len(message.areas), self._limits.max_watched_areas)
        blocks: set[BlockKey] = set()
        for index, area in enumerate(message.areas):
            try:
                zoom = requests.zoom(area.zoom)
                cells = await bound_cells_aside(
                    regions.region_cells(zoom, area.region), self._limits.max_region_cells
                )
            except InvalidRequestError as error:
                raise error.within(f"areas[{index}]") from None
            blocks.update(blocks_in(zoom, cells))
            if len(blocks) > (most := self._limits.max_watched_blocks):
                raise LimitExceededError(
                    FieldViolation("areas", f"cover more than {most} blocks of 32 x 32 cells")
                )
        return blocks


def _held(message: pb.WatchTilesRequest, blocks: set[BlockKey]) -> dict[BlockKey, bytes]:
    """The versions that the client names."""
    held = {}
    for index, block in enumerate(message.held):
        key = BlockKey(block.zoom, block.block_x, block.block_y)
        if key not in blocks:
            raise requests.invalid(f"held[{index}]", "must be a block of the areas")
        if len(block.version) > _MAX_VERSION_BYTES:
            raise LimitExceededError(
                FieldViolation(
                    f"held[{index}].version",
                    f"has {len(block.version)} bytes, must have at most {_MAX_VERSION_BYTES}",
                )
            )
        held[key] = block.version
    return held


def _packed(message: Message) -> bytes:
    heartbeat = None
    if message.heartbeat:
        heartbeat = pb.Heartbeat(**message.heartbeat._asdict())
    head = pb.WatchTilesResponse(number=message.number, synced=message.synced, heartbeat=heartbeat)
    return b"".join((head.SerializeToString(), *message.blocks))
