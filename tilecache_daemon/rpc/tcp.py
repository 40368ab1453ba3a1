"""TCP for peers on the ground: mutual TLS and an allow list of peers."""

import inspect
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog

from tilecache_daemon.config import Config, is_open_to_all
from tilecache_daemon.errors import PeerNotAllowedError
from tilecache_daemon.rpc.calls import abort
from tilecache_daemon.rpc.server import ListenError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

Check = Callable[["Context"], Awaitable[None]]

_DNS: Final = "peer_dns"
_URI: Final = "peer_uri"
_COMMON_NAME: Final = "x509_common_name"

_KINDS: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
"""gRPC's names of the kinds of RPC, by whether requests and answers are streams."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class TlsListener:
    """A TCP address with mutual TLS, for peers whose certificate the configured authority has
    signed and whose name is on the allow list."""

    options = (
        # Detects a lost radio link, whose streams would otherwise stay open.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    )

    def __init__(self, config: Config) -> None:
        """`config` must have a `tcp_address`; the TLS settings are then set, too."""
        self._config = config
        self.interceptors = (_AllowList(config.tls_allowed_names),)

    def claim_if_lost(self) -> bool:
        """False: a TCP port cannot be lost."""
        return False

    def bind(self, server: grpc.aio.Server) -> None:
        """Makes the server listen; raises ListenError with the name of the invalid setting."""
        address = self._config.tcp_address or ""
        try:
            server.add_secure_port(address, _load_credentials(self._config))
        except RuntimeError as error:
            raise ListenError(f"tcp_address: cannot listen on {address}") from error


class _AllowList(grpc.aio.ServerInterceptor):
    """Refuses all calls of peers that are not on the allow list."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._refused: set[str] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        return _guarded(handler, self._check) if handler else None

    async def _check(self, context: "Context") -> None:
        names = list(peer_names(context.auth_context()))
        if not self._names.isdisjoint(names):
            return
        peer = ", ".join(names) or "a peer without a name"
        if peer not in self._refused:
            self._refused.add(peer)
            log.warning("peer_refused", name=peer, peer=context.peer())
        await abort(context, PeerNotAllowedError(f"{peer} is not on the allow list"))


def peer_names(authentication: Mapping[str, Iterable[bytes]]) -> Iterator[str]:
    """The DNS names and URIs of a client's certificate, or its common name if it has none."""
    alternatives = [*authentication.get(_DNS, ()), *authentication.get(_URI, ())]
    for name in alternatives or authentication.get(_COMMON_NAME, ()):
        yield name.decode(errors="replace")


def _guarded(handler: "Handler", check: Check) -> "Handler":
    """The handler, preceded by a check of each call."""
    kind = _KINDS[handler.request_streaming, handler.response_streaming]
    behaviour: Callable[..., Any] = getattr(handler, kind)
    guard = _guarded_stream if inspect.isasyncgenfunction(behaviour) else _guarded_call
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped: Handler = make(
        guard(behaviour, check), handler.request_deserializer, handler.response_serializer
    )
    return wrapped


def _guarded_call(behaviour: Callable[..., Any], check: Check) -> Callable[..., Any]:
    async def guarded(request: Any, context: "Context") -> Any:
        await check(context)
        return await behaviour(request, context)

    return guarded


def _guarded_stream(behaviour: Callable[..., Any], check: Check) -> Callable[..., Any]:
    async def guarded(request: Any, context: "Context") -> AsyncIterator[Any]:
        await check(context)
        async with aclosing(behaviour(request, context)) as answers:
            async for answer in answers:
                yield answer

    return guarded


def _load_credentials(config: Config) -> grpc.ServerCredentials:
    """Reads the TLS files; raises ListenError with the name of the invalid setting."""
    assert config.tls_certificate
    assert config.tls_key
    assert config.tls_client_ca
    with _naming("tls_key", config.tls_key):
        if is_open_to_all(config.tls_key):
            raise PermissionError(0, "must not be readable by other users: run chmod o= on it")
        key = config.tls_key.read_bytes()
    with _naming("tls_certificate", config.tls_certificate):
        certificate = config.tls_certificate.read_bytes()
        # gRPC's error gives no reason. The empty passphrase prevents a prompt.
        ssl.create_default_context().load_cert_chain(
            config.tls_certificate, config.tls_key, lambda: ""
        )
    with _naming("tls_client_ca", config.tls_client_ca):
        ssl.create_default_context(cafile=config.tls_client_ca)
        authority = config.tls_client_ca.read_bytes()
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


@contextmanager
def _naming(setting: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise ListenError(f"{setting}: {file}: {error.strerror or error}") from error
