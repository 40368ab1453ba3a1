"""HTTP for Prometheus, in threads of its own, so that a scrape delays no call."""

import socket
import socketserver
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from tilecache_daemon import tasks
from tilecache_daemon.config import split_address
from tilecache_daemon.rpc.server import ListenError, UnixSocket

_CLIENT_TIMEOUT_S: Final = 5
_POLL_S: Final = 0.1
"""How often a server looks whether it is to stop, and whether its socket has vanished."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class MetricsListener:
    """Serves a registry at `host:port`, or on a Unix socket if the address is a path."""

    def __init__(
        self, address: str, registry: CollectorRegistry, socket_mode: int, socket_group: str | None
    ) -> None:
        self._address = address
        self._application = make_wsgi_app(registry)
        self._socket: UnixSocket | None = None
        if address.startswith("/"):
            self._socket = UnixSocket(Path(address), socket_mode, socket_group)
        self._server: WSGIServer | None = None

    def listen(self) -> None:
        """Takes the address; raises ListenError if that is not possible."""
        if self._socket:
            self._socket.claim()
        self._server = self._bind()

    async def run(self) -> None:
        """Answers scrapes until cancelled. The address must be taken. Listens again whenever the
        socket has vanished; raises ListenError if the address is in use by then."""
        assert self._server is not None
        while True:
            serve = partial(self._server.serve_forever, _POLL_S)
            try:
                await tasks.run_in_thread(serve, self._server.shutdown)
            except _SocketLostError:
                lost, self._server = self._server, self._bind()
                lost.server_close()

    def close(self) -> None:
        """Gives the address back. Idempotent."""
        if self._server:
            self._server.server_close()
            self._server = None
        if self._socket:
            self._socket.release()

    def _bind(self) -> WSGIServer:
        try:
            server = self._create_server()
        except OSError as error:
            raise ListenError(f"metrics_address: {self._address}: {error.strerror}") from error
        server.set_app(self._application)
        return server

    def _create_server(self) -> WSGIServer:
        if self._socket:
            with self._socket.listening() as path:
                return _UnixServer(path, self._socket.claim_if_lost)
        host, port = split_address(self._address)
        return (_IPv6Server if ":" in host else _Server)((host, port), _Handler)


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes are not logged."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that disconnects early needs no stack trace on stderr."""
        log.debug("scrape_failed", exc_info=True)


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _SocketLostError(Exception):
    """The socket is no longer at its path."""


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def __init__(self, path: Path, claim_if_lost: Callable[[], bool]) -> None:
        self._claim_if_lost = claim_if_lost
        super().__init__((str(path), 0), _Handler)

    def service_actions(self) -> None:
        # Called between requests.
        if self._claim_if_lost():
            raise _SocketLostError

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        # A client on a Unix socket has no address, but WSGI needs one.
        connection, _ = self.socket.accept()
        return connection, ("localhost", 0)

    def server_bind(self) -> None:
        # WSGIServer's own expects a host and a port.
        path, self.server_port = str(self.server_address[0]), 0
        self.socket.bind(path)
        self.server_name = "localhost"
        self.setup_environ()
