"""Servers that answer as a test wants, for the client to meet."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from tilecache.v1.tile_metadata_store_pb2_grpc import (
    TileMetadataStoreServicer,
    add_TileMetadataStoreServicer_to_server,
)

DETAILS_KEY = "grpc-status-details-bin"


class WatchedHealth(HealthServicer):
    """A health service that tells when it is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.is_watched = threading.Event()

    def Watch(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        self.is_watched.set()
        return super().Watch(*args, **kwargs)


class Refusing(TileMetadataStoreServicer):
    """Ends each call with a status and with the given bytes as its details."""

    def __init__(self, details: bytes, code: grpc.StatusCode) -> None:
        self._details = details
        self._code = code

    def GetTile(self, request: Any, context: Any) -> NoReturn:  # noqa: N802
        self._refuse(context)

    def QueryTiles(self, request: Any, context: Any) -> NoReturn:  # noqa: N802
        self._refuse(context)

    def _refuse(self, context: Any) -> NoReturn:
        context.set_trailing_metadata(((DETAILS_KEY, self._details),))
        context.abort(self._code, "refused")


@contextmanager
def refusing(
    socket_path: Path,
    details: bytes | Status,
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
) -> Iterator[None]:
    """A store that refuses."""
    serialized = details if isinstance(details, bytes) else details.SerializeToString()
    server = _server(socket_path)
    add_TileMetadataStoreServicer_to_server(Refusing(serialized, code), server)
    with _running(server):
        yield


@contextmanager
def reporting(socket_path: Path, service: str, status: Any) -> Iterator[WatchedHealth]:
    """A server that has nothing but the health of a service."""
    server = _server(socket_path)
    health = WatchedHealth()
    health.set(service, status)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    with _running(server):
        yield health


@contextmanager
def empty(socket_path: Path) -> Iterator[None]:
    """A server without any service."""
    with _running(_server(socket_path)):
        yield


def _server(socket_path: Path) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    server.add_insecure_port(f"unix:{socket_path}")
    return server


@contextmanager
def _running(server: grpc.Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()
