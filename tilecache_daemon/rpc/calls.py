"""The wrapper of every call: admission control, decoding, and mapping errors to statuses.

Handlers are wrapped once, when the server is built. grpc.aio's interceptors would do the
same at a cost for each call.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from tilecache.errors import FieldViolation
from tilecache_daemon.errors import (
    InvalidRequestError,
    LimitExceededError,
    OverloadedError,
    TileCacheError,
)
from tilecache_daemon.models import Limits
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc.observers import CallObserver, observed
from tilecache_daemon.rpc.status import internal_status, status_of

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

Answer = Message | bytes
MAX_ANSWER_BYTES: Final = 4_000_000
"""Of one message: less than the 4 MiB that a gRPC client takes unless it is told otherwise."""
DEGRADED_METADATA: Final = (("tilecache-degraded", "1"),)

READS: Final = frozenset(
    {
        "GetServerInfo",
        "DeriveTileIdentity",
        "GetTile",
        "LookupTiles",
        "QueryTiles",
        "DescribeCoverage",
        "ListExpiring",
        "TouchTiles",
        "GetMetrics",
    }
)
"""The calls that navigation depends on, and those that diagnose the daemon. A quarter of all
concurrent calls is reserved for them."""

WATCHES: Final = frozenset({"WatchTiles"})
"""Streams that stay open. They are no concurrent calls, but have a limit of their own; their
clients may be silent."""


class Degraded(bytes):
    """An answer from the cache while PostgreSQL is unavailable: it may be out of date."""


CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Calls:
    """Builds the handlers of a service from an object with one method per RPC.

    The method for `GetTile` is `get_tile`. It takes the request, or an iterator of requests,
    and returns a message or its bytes, or an iterator of these.
    """

    def __init__(
        self,
        limits: Limits,
        read_priority: ReadPriority,
        observers: Sequence[CallObserver] = (),
        *,
        stall_timeout_s: float = 60.0,
    ) -> None:
        """A stream whose client neither reads nor sends for `stall_timeout_s` is aborted, so
        that it no longer counts as a concurrent call."""
        self._limits = limits
        self._observers = observers
        self._stall_timeout_s = stall_timeout_s
        most = limits.max_concurrent_calls
        self._calls = _Admission("calls", most)
        self._reads = _Admission("reads", most, self._calls, read_priority.note_read)
        self._writes = _Admission("writes", max(most * 3 // 4, 1), self._calls)
        self._watches = _Admission("watches", limits.max_watch_streams)

    @property
    def open_watches(self) -> int:
        """The number of streams that are watched."""
        return self._watches.under_way

    @property
    def under_way(self) -> int:
        """The number of calls in progress."""
        return self._calls.under_way

    def handlers(self, service: ServiceDescriptor, servicer: object) -> dict[str, Handler]:
        """A handler for each method of the service, by name."""
        return {method.name: self._handler(method, servicer) for method in service.methods}

    def _handler(self, method: MethodDescriptor, servicer: object) -> Handler:
        behaviour = getattr(servicer, _snake_case(method.name))
        decode = self._decoder(method)
        begins = [observer.watch(method) for observer in self._observers]
        admission = self._reads if method.name in READS else self._writes
        if method.name in WATCHES:
            call: Any = self._duplex(behaviour, decode, self._watches, may_be_silent=True)
            return grpc.stream_stream_rpc_method_handler(observed(call, begins))
        if method.client_streaming:
            call = self._duplex(behaviour, decode, admission)
            return grpc.stream_stream_rpc_method_handler(observed(call, begins))
        if method.server_streaming:
            call = self._stream(behaviour, decode, admission)
            return grpc.unary_stream_rpc_method_handler(observed(call, begins))
        call = self._unary(behaviour, decode, admission)
        return grpc.unary_unary_rpc_method_handler(observed(call, begins))

    def _unary(
        self,
        behaviour: Callable[[Any], Awaitable[Answer]],
        decode: Callable[[bytes], Any],
        admission: AbstractContextManager[None],
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def call(data: bytes, context: Context) -> bytes:
            try:
                with admission:
                    return _encoded(await behaviour(decode(data)), context)
            except Exception as error:
                await abort(context, error)

        return call

    def _stream(
        self,
        behaviour: Callable[[Any], AsyncIterator[Answer]],
        decode: Callable[[bytes], Any],
        admission: AbstractContextManager[None],
    ) -> Callable[[bytes, Context], Awaitable[None]]:
        async def call(data: bytes, context: Context) -> None:
            try:
                with admission:
                    await self._send(behaviour(decode(data)), context)
            except Exception as error:
                await abort(context, error)

        return call

    def _duplex(
        self,
        behaviour: Callable[[AsyncIterator[Any]], AsyncIterator[Answer]],
        decode: Callable[[bytes], Any],
        admission: AbstractContextManager[None],
        *,
        may_be_silent: bool = False,
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def call(_: AsyncIterator[bytes], context: Context) -> None:
            async def requests() -> AsyncIterator[Any]:
                while True:
                    with nullcontext() if may_be_silent else self._stall_timeout("sent"):
                        data = await context.read()
                    if data is grpc.aio.EOF:
                        return
                    yield decode(data)

            try:
                with admission:
                    await self._send(behaviour(requests()), context)
            except Exception as error:
                await abort(context, error)

        return call

    async def _send(self, answers: AsyncIterator[Answer], context: Context) -> None:
        async with aclosing(answers):  # type: ignore[type-var]
            async for answer in answers:
                message = _encoded(answer, context)
                with self._stall_timeout("read"):
                    await context.write(message)

    @contextmanager
    def _stall_timeout(self, did: str) -> Iterator[None]:
        """Raises OverloadedError if the block waits for the client for too long."""
        task, stalled = asyncio.current_task(), False
        assert task

        def stall() -> None:
            nonlocal stalled
            stalled = task.cancel()

        timer = asyncio.get_running_loop().call_later(self._stall_timeout_s, stall)
        try:
            yield
        except asyncio.CancelledError:
            if not stalled:
                raise
            if hasattr(task, "uncancel"):  # since Python 3.11
                task.uncancel()
            raise OverloadedError(
                f"the client {did} nothing for {self._stall_timeout_s:g} s"
            ) from None
        finally:
            timer.cancel()

    def _decoder(self, method: MethodDescriptor) -> Callable[[bytes], Any]:
        message_type, most = method.input_type, self._limits.max_message_bytes
        parse = GetMessageClass(message_type).FromString

        def decode(data: bytes) -> Any:
            if len(data) > most:
                raise LimitExceededError(
                    FieldViolation("request", f"has {len(data)} bytes, must have at most {most}")
                )
            try:
                return parse(data)
            except DecodeError:
                raise InvalidRequestError(
                    FieldViolation("request", f"must be an encoded {message_type.full_name}")
                ) from None

        return decode


class _Admission:
    """Admission control for a kind of calls: raises OverloadedError beyond a limit, its own or
    that of the kind that includes it. Shared by all calls, because creating one for each
    would take longer than some calls do."""

    def __init__(
        self,
        kind: str,
        limit: int,
        including: _Admission | None = None,
        on_admitted: Callable[[], None] = lambda: None,
    ) -> None:
        self.under_way = 0
        self._kind = kind
        self._limit = limit
        self._including = including
        self._on_admitted = on_admitted

    def __enter__(self) -> None:
        if self.under_way >= self._limit:
            raise OverloadedError(f"{self._limit} {self._kind} are in progress, the limit")
        if self._including:
            self._including.__enter__()
        self.under_way += 1
        self._on_admitted()

    def __exit__(self, *error: object) -> None:
        self.under_way -= 1
        if self._including:
            self._including.__exit__(*error)


def _encoded(answer: Answer, context: Context) -> bytes:
    data = answer.SerializeToString() if isinstance(answer, Message) else answer
    if len(data) > MAX_ANSWER_BYTES:
        # A client could not read it, and would get an error without details.
        raise LimitExceededError(
            FieldViolation("answer", f"has {len(data)} bytes, must have at most {MAX_ANSWER_BYTES}")
        )
    if isinstance(answer, Degraded):
        context.set_trailing_metadata(DEGRADED_METADATA)
        # gRPC accepts bytes, but no subclass.
        return bytes(answer)
    return data


async def abort(context: Context, error: Exception) -> NoReturn:
    """Aborts a call with the status of an error."""
    if isinstance(error, TileCacheError):
        await _abort_with(context, status_of(error))
    if isinstance(error, grpc.aio.InternalError):
        # gRPC could not send: the client has disconnected.
        raise asyncio.CancelledError from error
    log.error("internal_error", exc_info=error)
    await _abort_with(context, internal_status())


async def _abort_with(context: Context, status: status_pb2.Status) -> NoReturn:
    try:
        await context.abort(
            CODES[status.code],
            status.message,
            (("grpc-status-details-bin", status.SerializeToString()),),
        )
    except grpc.aio.InternalError:
        # The client has disconnected.
        raise asyncio.CancelledError from None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
