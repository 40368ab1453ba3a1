"""WatchTiles: what is sent, and when."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import (
    ONBOARD,
    TIMEOUT_S,
    Block,
    bulk_insert,
    cell_region,
    circle_region,
    insert,
    random_flight,
    store_row,
    tile,
    tile_uuid,
)
from tests.watching import Stream, held, key_of
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import block_of
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    GetServerInfoRequest,
    HeldBlock,
    Region,
    TileRef,
    TouchTilesRequest,
    WatchedArea,
    WatchTilesRequest,
)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # the default limit of a gRPC client

Open = Callable[[], Stream]


@pytest.fixture
def open_stream(client: TileCacheClient) -> Iterator[Open]:
    """Opens streams that are closed at the end."""
    streams: list[Stream] = []

    def opened() -> Stream:
        streams.append(Stream(client))
        return streams[-1]

    yield opened
    for stream in streams:
        stream.close()


@pytest.fixture
def stream(open_stream: Open) -> Stream:
    return open_stream()


def small(block: Block) -> Region:
    """Cells in one block of 32 x 32."""
    return cell_region(block.x, block.x + 9, block.y, block.y + 9)


def test_each_block_of_the_areas_is_sent_whole_and_then_the_mark(
    client: TileCacheClient, stream: Stream, block: Block
) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(40, 2)])

    stream.follow(cell_region(block.x, block.x + 39, block.y, block.y))
    blocks = {key_of(sent): sent for sent in stream.blocks_until_synced()}

    first, second = block_of(18, block.x, block.y), block_of(18, block.x + 32, block.y)
    assert blocks.keys() == {first, second}
    # Whole blocks, not only the cells of the area.
    assert [len(blocks[key].tiles) for key in (first, second)] == [64, 16]
    assert all(sent.version and not sent.base_version for sent in blocks.values())


def test_an_empty_block_has_a_version_and_the_same_as_any_other(
    stream: Stream, block: Block
) -> None:
    stream.follow(cell_region(block.x, block.x + 39, block.y, block.y))
    first, second = stream.blocks_until_synced()

    assert first.version == second.version != b""
    assert not first.tiles


def test_nothing_followed_is_synced_at_once(stream: Stream) -> None:
    stream.follow()

    assert stream.blocks_until_synced() == []


@pytest.fixture
def admin_client(shared_daemon: DaemonProcess) -> TileCacheClient:
    return shared_daemon.admin_client


def test_a_change_is_sent_as_the_difference_to_what_was_sent(
    client: TileCacheClient, admin_client: TileCacheClient, stream: Stream, block: Block
) -> None:
    stored = [insert(client, tile(key)).tile for key in block.keys(3)]
    stream.follow(small(block))
    (first,) = stream.blocks_until_synced()

    added = insert(client, tile(block.key(5))).tile
    after_insert = stream.next_block()
    assert [each.tile_uuid for each in after_insert.tiles] == [added.tile_uuid]
    assert after_insert.base_version == first.version

    gone = DeleteTilesRequest(tile_uuids=[stored[0].tile_uuid])
    list(admin_client.admin.DeleteTiles(gone, timeout=TIMEOUT_S))
    after_delete = stream.next_block()
    assert list(after_delete.removed_tile_uuids) == [stored[0].tile_uuid]
    assert not after_delete.tiles
    assert after_delete.base_version == after_insert.version


def test_changes_by_other_programs_are_sent(
    sql: psycopg.Connection[Any], stream: Stream, block: Block
) -> None:
    stream.follow(small(block))
    stream.blocks_until_synced()

    stored = store_row(sql, block.key(1))

    assert [each.tile_uuid for each in stream.next_block().tiles] == [stored]


def test_a_recorded_access_sends_nothing(
    client: TileCacheClient, sql: psycopg.Connection[Any], stream: Stream, block: Block
) -> None:
    stored = insert(client, tile(block.key())).tile
    stream.follow(small(block))
    (first,) = stream.blocks_until_synced()
    assert not first.tiles[0].HasField("accessed_at")

    reference = TileRef(tile_uuid=stored.tile_uuid)
    client.store.TouchTiles(TouchTilesRequest(tiles=[reference]), timeout=TIMEOUT_S)
    sql.execute("UPDATE tiles SET accessed_at = now() WHERE tile_uuid = %s", [stored.tile_uuid])
    insert(client, tile(block.key(1)))

    # The first thing that is sent is the insert, based on the version before.
    change = stream.next_block()
    assert change.base_version == first.version
    assert [each.tile_uuid for each in change.tiles] == [tile_uuid(block.key(1))]


def test_a_block_that_returns_to_its_former_content_returns_to_its_version(
    client: TileCacheClient, sql: psycopg.Connection[Any], stream: Stream, block: Block
) -> None:
    insert(client, tile(block.key()))
    stream.follow(small(block))
    (first,) = stream.blocks_until_synced()

    stored = store_row(sql, block.key(1))
    assert stream.next_block().version != first.version
    sql.execute("DELETE FROM tiles WHERE tile_uuid = %s", [stored])

    assert stream.next_block().version == first.version


def test_a_held_block_is_sent_only_if_it_has_changed(
    client: TileCacheClient, open_stream: Open, block: Block
) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(40)])
    area = cell_region(block.x, block.x + 39, block.y, block.y)
    earlier = open_stream()
    earlier.follow(area)
    blocks = earlier.blocks_until_synced()
    earlier.close()
    added = insert(client, tile(block.key(0, 5))).tile

    again = open_stream()
    again.follow(area, held=map(held, blocks))
    (change,) = again.blocks_until_synced()

    # The daemon remembers the version, and sends what has changed since.
    assert [each.tile_uuid for each in change.tiles] == [added.tile_uuid]
    assert change.base_version in {sent.version for sent in blocks}


def test_a_held_version_that_is_unknown_has_the_whole_block_sent(
    client: TileCacheClient, stream: Stream, block: Block
) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(3)])
    key = block_of(18, block.x, block.y)
    unknown = HeldBlock(zoom=18, block_x=key.x, block_y=key.y, version=b"unknown")

    stream.follow(small(block), held=[unknown])
    (sent,) = stream.blocks_until_synced()

    assert len(sent.tiles) == 3
    assert not sent.base_version


def test_a_block_is_sent_anew_when_asked_for(
    client: TileCacheClient, stream: Stream, block: Block
) -> None:
    insert(client, tile(block.key()))
    stream.follow(small(block))
    (first,) = stream.blocks_until_synced()

    key = key_of(first)
    stream.follow(small(block), held=[HeldBlock(zoom=18, block_x=key.x, block_y=key.y)])
    (again,) = stream.blocks_until_synced()

    assert again == first


def test_other_areas_send_only_what_is_new_in_them(
    client: TileCacheClient, stream: Stream, block: Block
) -> None:
    insert(client, tile(block.key(0)))
    insert(client, tile(block.key(40)))
    stream.follow(small(block))
    stream.blocks_until_synced()

    stream.follow(cell_region(block.x, block.x + 40, block.y, block.y + 9))
    (second,) = stream.blocks_until_synced()
    assert key_of(second) == block_of(18, block.x + 40, block.y)

    stream.follow()
    assert stream.blocks_until_synced() == []
    # A block that was left is new when it is followed again.
    stream.follow(small(block))
    assert len(stream.blocks_until_synced()) == 1


def test_a_large_block_comes_in_parts_that_a_default_client_receives(
    client: TileCacheClient, stream: Stream, block: Block
) -> None:
    quality = {"note": "x" * 1_900}
    tiles = [
        tile(block.key(index % 32, 0, ONBOARD, random_flight()), file_path=f"{block.x}/{index}")
        for index in range(3_000)
    ]
    for each in tiles:
        each.quality_metadata.update(quality)
    bulk_insert(client, tiles[:1_500], tiles[1_500:])

    stream.follow(small(block))
    parts, sizes = [], []
    for response in stream:
        parts += response.blocks
        sizes.append(response.ByteSize())
        if response.synced:
            break

    assert max(sizes) < MAX_MESSAGE_BYTES < sum(sizes)
    assert [part.is_partial for part in parts] == [True] * (len(parts) - 1) + [False]
    assert len({each.tile_uuid for part in parts for each in part.tiles}) == 3_000


def test_heartbeats_bound_the_age_and_the_daemon_is_not_degraded(
    client: TileCacheClient, stream: Stream, block: Block
) -> None:
    stream.follow(small(block))
    beats = [beat for beat, _ in zip(stream.heartbeats(), range(4), strict=False)]

    assert not any(beat.heartbeat.degraded for beat in beats)
    assert all(beat.heartbeat.age_ms < 5_000 for beat in beats[1:])
    elapsed = [beat.heartbeat.elapsed_ms for beat in beats]
    assert elapsed == sorted(elapsed)


def test_the_mark_that_all_is_sent_comes_with_the_age_of_it(stream: Stream, block: Block) -> None:
    stream.follow(small(block))

    marked = next(response for response in stream if response.synced)

    assert marked.heartbeat.HasField("age_ms")


def test_no_heartbeat_tells_an_age_before_the_daemon_knows_what_is_held(stream: Stream) -> None:
    beats = stream.heartbeats()
    silent = next(beats)
    assert silent.number == 0
    assert not silent.heartbeat.HasField("age_ms")

    stream.follow()
    assert next(beats).heartbeat.HasField("age_ms")


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"number": 0}, "number"),
        ({"number": -5}, "number"),
        ({"areas": [WatchedArea(zoom=23, region=cell_region(0, 0, 0, 0))]}, "areas[0].zoom"),
        ({"areas": [WatchedArea(zoom=18)]}, "areas[0].region"),
        (
            {"areas": [WatchedArea(zoom=18, region=circle_region(91, 0, 10))]},
            "areas[0].region.circle.latitude",
        ),
        (
            {"areas": [WatchedArea(zoom=18, region=cell_region(5, 4, 0, 0))]},
            "areas[0].region.cell_range.x_from",
        ),
        ({"held": [HeldBlock(zoom=18, block_x=0, block_y=0, version=b"v")]}, "held[0]"),
        (
            {
                "areas": [WatchedArea(zoom=18, region=cell_region(0, 0, 0, 0))],
                "held": [HeldBlock(zoom=18, version=bytes(65))],
            },
            "held[0].version",
        ),
    ],
)
def test_a_bad_request_ends_the_stream_and_names_the_field(
    stream: Stream, request_fields: dict[str, Any], field: str
) -> None:
    stream.send(WatchTilesRequest(**{"number": 1, **request_fields}))

    with pytest.raises(CallError) as refused:
        stream.blocks_until_synced()

    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refused.value.violations] == [field]


def test_a_number_must_grow(stream: Stream) -> None:
    stream.send(WatchTilesRequest(number=7))
    stream.send(WatchTilesRequest(number=7))

    with pytest.raises(CallError, match="number: is 7, must be more than 7"):
        for _ in stream:
            pass


def test_areas_beyond_the_limits_are_refused_by_name(
    client: TileCacheClient, open_stream: Open
) -> None:
    limits = client.store.GetServerInfo(GetServerInfoRequest(), timeout=TIMEOUT_S).limits
    most_side = int(limits.max_watched_blocks**0.5) * 32
    too_large = cell_region(0, most_side + 31, 0, most_side - 1)
    one_cell = WatchedArea(zoom=18, region=cell_region(0, 0, 0, 0))
    for areas in (
        [WatchedArea(zoom=18, region=too_large)],
        [one_cell] * (limits.max_watched_areas + 1),
    ):
        stream = open_stream()
        stream.send(WatchTilesRequest(number=1, areas=areas))
        with pytest.raises(CallError) as refused:
            stream.blocks_until_synced()
        assert refused.value.reason == "LIMIT_EXCEEDED"
        assert [violation.field for violation in refused.value.violations] == ["areas"]
    allowed = open_stream()
    allowed.follow(cell_region(0, most_side - 1, 0, most_side - 1))
    assert len(allowed.blocks_until_synced()) == limits.max_watched_blocks


def test_a_client_that_ends_its_requests_ends_the_stream(stream: Stream, block: Block) -> None:
    stream.follow(small(block))
    stream.blocks_until_synced()

    stream.end_requests()

    assert all(not response.blocks for response in stream)


def test_an_overlap_of_areas_is_sent_once(stream: Stream, block: Block) -> None:
    stream.follow(small(block), small(block))

    assert len(stream.blocks_until_synced()) == 1


def test_bytes_that_are_no_request_end_the_stream(client: TileCacheClient) -> None:
    with grpc.insecure_channel(
        f"unix:{client.socket_path}", [("grpc.default_authority", "localhost")]
    ) as channel:
        call = channel.stream_stream("/tilecache.v1.TileMetadataStore/WatchTiles")
        responses = call(iter([b"\xff\xff"]), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as refused:
            list(responses)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
