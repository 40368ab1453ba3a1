"""The gRPC server: its sockets, its services, health and reflection."""

import fcntl
import logging
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from tilecache.v1 import tile_cache_admin_pb2, tile_metadata_store_pb2
from tilecache_daemon.models import Limits
from tilecache_daemon.rpc.calls import Calls

STORE: Final = tile_metadata_store_pb2.DESCRIPTOR.services_by_name["TileMetadataStore"]
ADMIN: Final = tile_cache_admin_pb2.DESCRIPTOR.services_by_name["TileCacheAdmin"]
LIVENESS: Final = ""
"""The health service's name for the server as a whole: SERVING while the process runs,
whatever the state of the database."""

_HARD_MESSAGE_FACTOR: Final = 4
"""gRPC's limit on messages, in multiples of `max_message_bytes`. It is higher, because gRPC's
own error for a message that is too large has no details."""
_STREAMS_PER_CONNECTION: Final = 512
"""gRPC's limit on concurrent calls of a connection, which also bounds unread answers. It is
higher than `max_concurrent_calls` for the same reason."""

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The server cannot listen on an address; the message gives the reason."""


class SocketError(ListenError):
    """The server cannot use the path of a socket; the message gives the reason."""


class Listener(Protocol):
    """An address that a server listens on."""

    @property
    def options(self) -> Sequence[tuple[str, object]]:
        """gRPC options for the connections of this address."""

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """Interceptors for the calls of this address."""

    def bind(self, server: grpc.aio.Server) -> None:
        """Makes the server listen; raises ListenError."""


class UnixSocket:
    """A Unix socket whose path one daemon uses exclusively, by a lock on a file beside it.

    A stale socket, on which no process listens, is replaced. A socket in use, and a file that
    is not a socket, are left unchanged.
    """

    options = interceptors = ()

    def __init__(self, path: Path, mode: int, group: str | None) -> None:
        self.path = path
        self._mode = mode
        self._group = group
        self._lock: int | None = None

    def claim(self) -> None:
        """Locks the path and removes a stale socket; raises SocketError if the path is in use."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SocketError(f"{self.path}: {error.strerror} ({error.filename})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clear()
        except BlockingIOError:
            os.close(lock)
            raise SocketError(f"{self.path}: in use by another daemon") from None
        except SocketError:
            os.close(lock)
            raise
        self._lock = lock

    def bind(self, server: grpc.aio.Server) -> None:
        """Makes the server listen on the path, which must be claimed."""
        with self.listening():
            server.add_insecure_port(f"unix:{self.path}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The block may create the socket. No other user can connect before its mode and group
        are set."""
        umask = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(umask)
        self.protect()

    def protect(self) -> None:
        """Sets the socket's mode and group; raises SocketError if that fails."""
        try:
            if self._group is not None:
                shutil.chown(self.path, group=self._group)
            self.path.chmod(self._mode)
        except (OSError, LookupError) as error:
            raise SocketError(f"{self.path}: group {self._group!r}: {error}") from error

    def release(self) -> None:
        """Removes the socket and unlocks the path. Idempotent."""
        if self._lock is None:
            return
        if self.path.is_socket():
            self.path.unlink()
        os.close(self._lock)
        self._lock = None

    def _clear(self) -> None:
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise SocketError(f"{self.path}: exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
            except OSError as error:
                raise SocketError(f"{self.path}: {error.strerror}") from error
            else:
                raise SocketError(f"{self.path}: in use by another program")


class Server:
    """A grpc.aio server on one address."""

    def __init__(
        self,
        listener: Listener,
        services: Mapping[ServiceDescriptor, object],
        calls: Calls,
        limits: Limits,
    ) -> None:
        self._listener = listener
        self._services = services
        self._calls = calls
        self._health = HealthServicer()
        self._server = grpc.aio.server(
            interceptors=listener.interceptors,
            options=[
                *listener.options,
                (
                    "grpc.max_receive_message_length",
                    limits.max_message_bytes * _HARD_MESSAGE_FACTOR,
                ),
                ("grpc.max_send_message_length", limits.max_message_bytes * _HARD_MESSAGE_FACTOR),
                ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
                ("grpc.so_reuseport", 0),
            ],
        )

    async def start(self) -> None:
        """Starts serving; health is NOT_SERVING until `set_ready`. A socket must be claimed."""
        for service, servicer in self._services.items():
            handlers = self._calls.handlers(service, servicer)
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service.full_name, handlers),)
            )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.full_name for service in self._services]
        reflection.enable_server_reflection(
            [*names, reflection.SERVICE_NAME, "grpc.health.v1.Health"], self._server
        )
        await self.set_ready(ready=False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        self._listener.bind(self._server)
        await self._server.start()

    async def set_ready(self, *, ready: bool) -> None:
        """Sets the readiness of all services, as reported by the health service."""
        status = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._health.set(
                service.full_name, status.SERVING if ready else status.NOT_SERVING
            )

    async def stop(self, drain_timeout_s: float) -> None:
        """Graceful shutdown: refuses new calls, and drains those in progress for up to
        `drain_timeout_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(drain_timeout_s)
