"""One of the two daemons that are synchronised, and what it says of its tiles."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Event
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from tilecache.block_digests import SHORT_DIGEST_BYTES
from tilecache.client import TileCacheClient, is_degraded
from tilecache.errors import CallError
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon.ingest.sender import DEFAULT_RETRY_POLICY, Batch, BatchSender

_CALL_TIMEOUT_S: Final = 60
_STREAM_TIMEOUT_S: Final = 3_600
_PAGE_TILES: Final = 1_000
_UUID_BYTES: Final = 16

BlockPosition = tuple[int, int]
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class PeerError(Exception):
    """A call to one of the daemons failed; `__cause__` is the CallError."""

    def __init__(self, address: str, cause: CallError) -> None:
        super().__init__(f"{address}: {cause.message}")
        self.__cause__ = cause
        self.code = cause.code


class Block(NamedTuple):
    """A block with tiles."""

    position: BlockPosition
    tile_count: int
    digest: bytes


class Peer:
    """A daemon. Each call raises PeerError."""

    def __init__(self, client: TileCacheClient, *, restart_timeout_s: float = 0.0) -> None:
        """A daemon that has answered once and does not answer any more is waited for, for
        `restart_timeout_s`."""
        self.client = client
        self.transferred_bytes = 0
        """Of the messages in both directions, without what the transport adds."""
        self._restart_timeout_s = restart_timeout_s
        self._has_answered = False

    def describe_blocks(self, zoom: int, region: pb.Region | None) -> list[Block]:
        """The blocks of a zoom that have tiles, in order."""
        request = pb.DescribeBlocksRequest(zoom=zoom, region=region)
        return [
            Block((block.block_x, block.block_y), block.tile_count, block.digest)
            for block in self._describe(request)
        ]

    def digest_tiles(self, zoom: int, blocks: Iterable[BlockPosition]) -> dict[bytes, bytes]:
        """The tiles of some blocks: their ids as bytes, and the beginnings of their digests."""
        request = pb.DescribeBlocksRequest(
            zoom=zoom,
            blocks=[pb.BlockPosition(block_x=x, block_y=y) for x, y in blocks],
            detail=True,
        )
        tiles: dict[bytes, bytes] = {}
        for block in self._describe(request):
            tile_uuids = _split(block.tile_uuids, _UUID_BYTES)
            digests = _split(block.tile_digests, SHORT_DIGEST_BYTES)
            tiles.update(zip(tile_uuids, digests, strict=True))
        return tiles

    def look_up(self, tile_uuids: Sequence[str]) -> list[pb.TileMetadata | None]:
        """The tiles with these ids, in order; None for one that is not stored."""
        if not tile_uuids:
            return []
        request = pb.LookupTilesRequest(
            tiles=[pb.TileRef(tile_uuid=tile_uuid) for tile_uuid in tile_uuids]
        )
        try:
            answer = self._answer(lambda: _look_up(self.client, request))
        except PeerError as error:
            if error.code is not grpc.StatusCode.INVALID_ARGUMENT or len(tile_uuids) == 1:
                raise
            # The answer would be larger than a message.
            middle = len(tile_uuids) // 2
            return self.look_up(tile_uuids[:middle]) + self.look_up(tile_uuids[middle:])
        self._count(request, answer)
        return [result.tile if result.HasField("tile") else None for result in answer.results]

    def insert(
        self, batches: Iterable[Batch], stopping: Event
    ) -> Iterator[tuple[Batch, pb.BulkInsertTilesResponse]]:
        """Inserts tiles so that the later one of two stays; see BatchSender."""
        sender = BatchSender(self.client, pb.ON_CONFLICT_CONVERGE, stopping, DEFAULT_RETRY_POLICY)
        with self._named():
            for batch, answer in sender.send(batches):
                self._count(*(tile.metadata for tile in batch), answer)
                yield batch, answer

    def list_pending_uploads(self) -> Iterator[list[pb.TileMetadata]]:
        """The tiles that wait for upload, in pages."""
        request = pb.ListPendingUploadsRequest(page_size=_PAGE_TILES)
        while True:
            answer = self._call(self.client.store.ListPendingUploads, request)
            if answer.tiles:
                yield list(answer.tiles)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def mark_uploaded(self, tiles: Iterable[pb.TileMetadata]) -> "list[pb.MarkOutcome.ValueType]":
        """Marks tiles with their content as uploaded; an outcome for each, in order."""
        request = pb.MarkUploadedRequest(
            tiles=[
                pb.UploadedTile(tile_uuid=tile.tile_uuid, content_sha256=tile.content_sha256)
                for tile in tiles
            ]
        )
        if not request.tiles:
            return []
        return list(self._call(self.client.store.MarkUploaded, request).outcomes)

    def describe_server(self) -> pb.GetServerInfoResponse:
        """What the daemon says of itself."""
        info: pb.GetServerInfoResponse = self._call(
            self.client.store.GetServerInfo, pb.GetServerInfoRequest()
        )
        return info

    def _describe(self, request: pb.DescribeBlocksRequest) -> list[pb.BlockDigest]:
        describe = self.client.store.DescribeBlocks
        answers = self._answer(lambda: list(describe(request, timeout=_STREAM_TIMEOUT_S)))
        self._count(request, *answers)
        return [block for answer in answers for block in answer.blocks]

    def _call(self, method: Callable[..., Message], request: Message) -> Any:
        answer = self._answer(lambda: method(request, timeout=_CALL_TIMEOUT_S))
        self._count(request, answer)
        return answer

    def _answer(self, call: Callable[[], Answer]) -> Answer:
        """The answer of a call, which is repeated after a restart of the daemon."""
        with self._named():
            try:
                answer = call()
            except CallError as error:
                restarts = error.code is grpc.StatusCode.UNAVAILABLE and self._has_answered
                if not restarts or not self._restart_timeout_s:
                    raise
                self.client.wait_until_ready(self._restart_timeout_s)
                answer = call()
        self._has_answered = True
        return answer

    def _count(self, *messages: Message) -> None:
        self.transferred_bytes += sum(message.ByteSize() for message in messages)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except CallError as error:
            raise PeerError(self.client.address, error) from error


def _look_up(client: TileCacheClient, request: pb.LookupTilesRequest) -> pb.LookupTilesResponse:
    answer, call = client.store.LookupTiles.with_call(request, timeout=_CALL_TIMEOUT_S)
    if is_degraded(call):
        raise CallError(
            grpc.StatusCode.UNAVAILABLE,
            "its database does not answer, so its tiles may be out of date",
        )
    found: pb.LookupTilesResponse = answer
    return found


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of so many."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
