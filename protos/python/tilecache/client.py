"""A typed client for Python peers: the stubs of both services on one channel.

    with TileCacheClient("/run/tilecache/tilecache.sock") as client:
        client.wait_until_ready(timeout_s=10)
        info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=1)

A call that fails raises `CallError`, which carries the details of its `google.rpc.Status`.
Idempotent calls are retried while the daemon is `UNAVAILABLE`.

Tiles may be out of date while the daemon's database does not answer; `is_degraded` says so:

        answer, call = client.store.LookupTiles.with_call(request, timeout=1)
        answers = client.store.QueryTiles(request, timeout=1)  # read to the end
        is_degraded(call), is_degraded(answers)
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Callable, Final, Iterator, cast

import grpc
from grpc.experimental import ChannelOptions

from tilecache.errors import CallError, call_error
from tilecache.paths import default_socket_path, socket_target
from tilecache.replica import TileReplica
from tilecache.status.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from tilecache.v1.tile_cache_admin_pb2_grpc import TileCacheAdminStub
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

STORE_SERVICE: Final = "tilecache.v1.TileMetadataStore"
ADMIN_SERVICE: Final = "tilecache.v1.TileCacheAdmin"

_IDEMPOTENT: Final = {
    STORE_SERVICE: (
        "GetServerInfo",
        "DeriveTileIdentity",
        "InsertTile",
        "GetTile",
        "LookupTiles",
        "QueryTiles",
        "DescribeBlocks",
        "DescribeCoverage",
        "ListExpiring",
        "TouchTiles",
        "ListPendingUploads",
        "ListTiles",
        "ListFlights",
        "MarkUploaded",
    ),
    ADMIN_SERVICE: (
        "GetStorageUsage",
        "GetMetrics",
        "ListEvictions",
        "ListPins",
        "ListSectors",
        "ListFreshnessRules",
        "ExplainFreshness",
        "UpdateTiles",
    ),
}

_SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method}
                for service, methods in _IDEMPOTENT.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_KEEPALIVE_TIME_S: Final = 10
_KEEPALIVE_TIMEOUT_S: Final = 20

_OPTIONS: Final = [
    # The default of up to two minutes is too long to notice a restarted daemon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A daemon that hangs is noticed during a call, also without a deadline.
    ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_S * 1000),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # The calling thread reads a stream's answers itself; no other is woken.
    (ChannelOptions.SingleThreadedUnaryStream, 1),
]

_STATES: Final = {
    HealthCheckResponse.SERVING_STATUS_NOT_SERVING: "NOT_SERVING (it runs, but is not ready)",
    HealthCheckResponse.SERVING_STATUS_SERVICE_UNKNOWN: "SERVICE_UNKNOWN (not served here)",
}
_POLL_INTERVAL_S: Final = 0.1
_DEGRADED: Final = ("tilecache-degraded", "1")


def is_degraded(call: Any) -> bool:
    """Whether the tiles of an answer may be out of date.

    `call` is the second result of `with_call`, or the answers of a stream that was read to its
    end.
    """
    return _DEGRADED in tuple(call.trailing_metadata() or ())


class TileCacheClient:
    """Stubs on one channel. Usable from many threads; close it, or use `with`."""

    def __init__(
        self,
        socket_path: Path | str | None = None,
        *,
        tcp_address: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """`socket_path` is by default that of the user's own daemon, else the system's. For a
        daemon's TCP listener give `tcp_address` (HOST:PORT) instead, and credentials for mutual
        TLS, as `grpc.ssl_channel_credentials` makes them; the admin service is not served there.
        """
        if tcp_address is None:
            self.socket_path = Path(socket_path or default_socket_path()).absolute()
            self.address = str(self.socket_path)
            # By default gRPC sends the percent-encoded path, which some servers refuse.
            options = [*_OPTIONS, ("grpc.default_authority", "localhost")]
            self._channel = grpc.insecure_channel(socket_target(self.socket_path), options=options)
        else:
            if credentials is None or socket_path is not None:
                raise ValueError("tcp_address needs credentials, and excludes socket_path")
            self.address = tcp_address
            self._channel = grpc.secure_channel(tcp_address, credentials, options=_OPTIONS)
        translating = _TranslatingChannel(self._channel)
        self.store = TileMetadataStoreStub(cast(grpc.Channel, translating))
        self.admin = TileCacheAdminStub(cast(grpc.Channel, translating))
        self._check_health = translating.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        self._watch_health = translating.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )

    def __enter__(self) -> TileCacheClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the channel and every call on it."""
        self._channel.close()

    def replica(self, **options: Any) -> TileReplica:
        """A `TileReplica` on this channel, with its options; close it before the client."""
        return TileReplica(self, **options)

    def is_serving(self, service: str = STORE_SERVICE, timeout_s: float = 1.0) -> bool:
        """Whether a service is ready; raises CallError if no daemon answers."""
        answer = self._check_health(HealthCheckRequest(service=service), timeout=timeout_s)
        return bool(answer.status == HealthCheckResponse.SERVING_STATUS_SERVING)

    def wait_until_ready(self, timeout_s: float, service: str = STORE_SERVICE) -> None:
        """Returns when a service is ready.

        A daemon that has not started yet, or that restarts, is waited for. Raises CallError when
        the time is over or waiting cannot help; its message names the service, the socket and
        the last known state.
        """
        deadline = time.monotonic() + timeout_s
        code, state = grpc.StatusCode.DEADLINE_EXCEEDED, "no answer"
        while (remaining_s := deadline - time.monotonic()) > 0:
            watch = self._watch_health(HealthCheckRequest(service=service), timeout=remaining_s)
            try:
                for answer in watch:
                    if answer.status == HealthCheckResponse.SERVING_STATUS_SERVING:
                        watch.cancel()
                        return
                    state = _STATES.get(answer.status, f"health status {answer.status}")
            except CallError as error:
                if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    state = error.message
                    if error.code is not grpc.StatusCode.UNAVAILABLE:
                        code = error.code
                        break
            time.sleep(_POLL_INTERVAL_S)
        raise CallError(
            code,
            f"{service} on {self.address} is not ready, waited up to {timeout_s:g} s: {state}",
        )


class _TranslatingChannel:
    """A channel whose calls raise CallError instead of grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *args: Any, **kwargs: Any) -> _UnaryCall:
        return _UnaryCall(self._channel.unary_unary(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> _UnaryCall:
        return _UnaryCall(self._channel.stream_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _streaming(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _streaming(self._channel.stream_stream(*args, **kwargs))


def _translating(call: Callable[..., Any]) -> Callable[..., Any]:
    def translated(request: object, **options: Any) -> Any:
        try:
            return call(request, **options)
        except grpc.RpcError as error:
            raise call_error(error) from error

    return translated


class _UnaryCall:
    """A call with one answer, as gRPC's own."""

    def __init__(self, call: Any) -> None:
        self._call = _translating(call)
        self.with_call = _translating(call.with_call)
        """Returns the answer and the call."""

    def __call__(self, request: object, **options: Any) -> Any:
        return self._call(request, **options)


def _streaming(call: Callable[..., Any]) -> Callable[..., Any]:
    start = _translating(call)
    return lambda request, **options: _Answers(start(request, **options))


class _Answers(Iterator[Any]):
    """The answers of a stream, which can be cancelled."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers

    def __next__(self) -> Any:
        try:
            return next(self._answers)
        except grpc.RpcError as error:
            raise call_error(error) from error

    def cancel(self) -> None:
        self._answers.cancel()

    def trailing_metadata(self) -> Any:
        """As gRPC's; known after the last answer."""
        return self._answers.trailing_metadata()
