"""Clients that send keepalive pings every second are not disconnected."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemon_process import DaemonProcess
from tests.tiles import Block, tile
from tilecache.client import STORE_SERVICE
from tilecache.paths import socket_target
from tilecache.v1.tile_metadata_store_pb2 import BulkInsertTilesRequest
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

PATIENCE_S = 12.0
"""By default, gRPC ends such a connection after four to nine seconds."""
READY = grpc.ChannelConnectivity.READY
OPTIONS = [
    ("grpc.default_authority", "localhost"),
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture
def channels(shared_daemon: DaemonProcess) -> Iterator[list[grpc.Channel]]:
    """Three connections to each socket."""
    paths: list[Path] = [shared_daemon.socket_path, shared_daemon.admin_socket_path]
    with ExitStack() as closing:
        yield [
            closing.enter_context(grpc.insecure_channel(socket_target(path), OPTIONS))
            for path in paths
            for _ in range(3)
        ]


def test_pings_every_second_end_no_call_and_no_idle_connection(
    channels: list[grpc.Channel], block: Block
) -> None:
    ended = Event()

    watches, streams = [], []
    for watching, streaming, idle in (channels[:3], channels[3:]):
        watch = health_pb2_grpc.HealthStub(watching).Watch(
            health_pb2.HealthCheckRequest(service=STORE_SERVICE)
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        requests: SimpleQueue[BulkInsertTilesRequest | None] = SimpleQueue()
        stream = TileMetadataStoreStub(streaming).BulkInsertTiles(iter(requests.get, None))
        requests.put(BulkInsertTilesRequest(tiles=[tile(block.key())]))
        next(stream)
        grpc.channel_ready_future(idle).result(timeout=10)
        idle.subscribe(lambda state: None if state is READY else ended.set())
        for call in (watch, stream):
            call.add_callback(ended.set)
        watches.append(watch)
        streams.append((requests, stream))

    assert not ended.wait(PATIENCE_S)

    for requests, stream in streams:
        requests.put(None)
        assert not list(stream)
    for watch in watches:
        watch.cancel()
