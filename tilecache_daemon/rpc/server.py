"""The gRPC server: its sockets, its services, health and reflection."""

import asyncio
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from tilecache.paths import socket_target
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
STREAMS_PER_CONNECTION: Final = 512
"""gRPC's limit on concurrent calls of a connection, which also bounds unread answers. It is
higher than `max_concurrent_calls` for the same reason."""
_KEEPALIVE: Final = (
    # Clients may ping every second; the margin is for pings that are delayed on the way. gRPC's
    # default ends a connection after the third ping within five minutes of each other.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    # Without it, gRPC takes two hours instead while there is no call.
    ("grpc.keepalive_permit_without_calls", 1),
)

_CHECK_INTERVAL_S: Final = 1.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


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

    def claim_if_lost(self) -> bool:
        """Whether the address no longer leads to the server, so that another server must be
        bound; raises ListenError if the address is in use."""


class UnixSocket:
    """A Unix socket whose path one daemon uses exclusively, by a lock on a file beside it.

    A stale socket, on which no process listens, is replaced. A socket in use, and a file that
    is not a socket, are left unchanged.

    The socket is created under a name of its own and renamed: it appears with its mode and group,
    and gRPC, which removes the path that it has bound, removes nothing that is at the path by
    then.
    """

    options = interceptors = ()

    def __init__(self, path: Path, mode: int, group: str | None) -> None:
        self.path = path
        self._mode = mode
        self._group = group
        self._lock: int | None = None
        self._created: _FileId | None = None

    def claim(self) -> None:
        """Locks the path and removes a stale socket; raises SocketError if the path is in use."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        with self.listening() as path:
            server.add_insecure_port(socket_target(path))

    @contextmanager
    def listening(self) -> Iterator[Path]:
        """The block creates the socket at the path that is yielded. No other user can connect
        before its mode and group are set; raises SocketError if that fails."""
        path = self.path.with_name(f".{self.path.name}")
        path.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            yield path
        finally:
            os.umask(umask)
        try:
            if self._group is not None:
                shutil.chown(path, group=self._group)
            path.chmod(self._mode)
            self._created = _file_id(path)
            path.rename(self.path)
        except (OSError, LookupError) as error:
            path.unlink(missing_ok=True)
            raise SocketError(f"{self.path}: group {self._group!r}: {error}") from error

    def claim_if_lost(self) -> bool:
        """Claims the path again if the socket or the lock is no longer at its path, and returns
        whether that was so; raises SocketError if the path is in use."""
        if self._lock is not None:
            locked = _file_id(self._lock) == _file_id(self._lock_path)
            if locked and self._is_own_socket():
                return False
            log.warning("socket_lost", socket=str(self.path))
        self.release()
        self.claim()
        return True

    def release(self) -> None:
        """Removes the socket, if it is the one that was created here, and unlocks the path.
        Idempotent."""
        if self._lock is None:
            return
        if self._is_own_socket():
            self.path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = self._created = None

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def _is_own_socket(self) -> bool:
        return self._created is not None and _file_id(self.path) == self._created

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


_FileId = tuple[int, int]
"""Device and inode."""


def _file_id(file: Path | int) -> _FileId | None:
    try:
        found = os.fstat(file) if isinstance(file, int) else file.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Server:
    """A server on one address."""

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
        self._max_message_bytes = limits.max_message_bytes * _HARD_MESSAGE_FACTOR
        self._health = HealthServicer()
        self._servers: list[grpc.aio.Server] = []

    async def start(self) -> None:
        """Starts serving; health is NOT_SERVING until `set_ready`. A socket must be claimed."""
        await self.set_ready(ready=False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._listen()

    async def keep_reachable(self) -> None:
        """Listens again whenever the socket has vanished, until cancelled; raises ListenError if
        the address is in use by then. Open connections are kept."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            if self._listener.claim_if_lost():
                await self._listen()

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
        await asyncio.gather(*(server.stop(drain_timeout_s) for server in self._servers))

    async def _listen(self) -> None:
        # A grpc.aio server that is started takes no further address.
        server = grpc.aio.server(
            interceptors=self._listener.interceptors,
            options=[
                *self._listener.options,
                *_KEEPALIVE,
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", self._max_message_bytes),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
                ("grpc.so_reuseport", 0),
            ],
        )
        for service, servicer in self._services.items():
            handlers = self._calls.handlers(service, servicer)
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service.full_name, handlers),)
            )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.full_name for service in self._services]
        reflection.enable_server_reflection(
            [*names, reflection.SERVICE_NAME, "grpc.health.v1.Health"], server
        )
        self._listener.bind(server)
        await server.start()
        self._servers.append(server)
