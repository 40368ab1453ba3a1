"""TCP for peers on the ground: mutual TLS, and a list of who may call."""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc

from tilecache_daemon.config import Config, is_open_to_all
from tilecache_daemon.errors import PeerNotAllowedError
from tilecache_daemon.rpc.calls import abort
from tilecache_daemon.rpc.server import ListenError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

_DNS: Final = "peer_dns"
_URI: Final = "peer_uri"
_COMMON_NAME: Final = "x509_common_name"


class TlsListener:
    """A TCP address that only clients with a certificate of the right authority reach,
    and that answers only those whose name is on the list."""

    def __init__(self, config: Config) -> None:
        """The settings from `tcp_address` to `tls_allowed_names` must be there."""
        self._config = config
        self.address = config.tcp_address or ""
        self.interceptors = (_AllowList(config.tls_allowed_names),)

    def bind(self, server: grpc.aio.Server) -> None:
        """Takes the address; raises ListenError, naming the setting that does not do."""
        config = self._config
        if config.tls_key and is_open_to_all(config.tls_key):
            raise ListenError(f"tls_key: everybody may read {config.tls_key}; chmod o= it")
        credentials = grpc.ssl_server_credentials(
            [(_read("tls_key", config.tls_key), _read("tls_certificate", config.tls_certificate))],
            _read("tls_client_ca", config.tls_client_ca),
            require_client_auth=True,
        )
        try:
            server.add_secure_port(self.address, credentials)
        except RuntimeError as error:
            raise ListenError(
                f"tcp_address {self.address}, tls_certificate, tls_key: {error}"
            ) from error

    def release(self) -> None:
        """gRPC gives the address back itself."""


class _AllowList(grpc.aio.ServerInterceptor):
    """Refuses every call of a peer that is not on the list, whatever it calls."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler":
        handler = await continuation(handler_call_details)
        return handler and _guarded(handler, self._check)

    async def _check(self, context: "Context") -> None:
        names = list(peer_names(context.auth_context()))
        if self._names.isdisjoint(names):
            said = ", ".join(names) or "no name"
            await abort(context, PeerNotAllowedError(f"{said} is not on the list of who may call"))


def peer_names(authentication: Mapping[str, Collection[bytes]]) -> Iterator[str]:
    """The DNS names and URIs of a client's certificate; its common name if it has none."""
    alternatives = [*authentication.get(_DNS, ()), *authentication.get(_URI, ())]
    for name in alternatives or authentication.get(_COMMON_NAME, ()):
        yield name.decode(errors="replace")
