"""What every call goes through: admission, decoding, and errors told in one way.

grpc.aio's interceptors would do the same at a cost per call; here the handlers
are wrapped once, when the server is built.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
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
DEGRADED_METADATA: Final = (("tilecache-degraded", "1"),)

READS: Final = frozenset(
    {
        "GetServerInfo",
        "DeriveTileIdentity",
        "GetTile",
        "LookupTiles",
        "QueryTiles",
        "DescribeCoverage",
        "TouchTiles",
        "GetMetrics",
    }
)
"""What an aircraft cannot do without, and how to see why it has to: a quarter of all calls
at once is kept for it."""


class Degraded(bytes):
    """An answer from memory while PostgreSQL is away: it may be out of date."""


CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Calls:
    """Builds a service's handlers from an object with one method an RPC.

    The method for `GetTile` is `get_tile`. It takes the request, or an iterator
    of requests, and returns a message or its bytes, or an iterator of them.
    """

    def __init__(
        self,
        limits: Limits,
        read_priority: ReadPriority,
        observers: Sequence[CallObserver] = (),
        *,
        stall_timeout_s: float = 60.0,
    ) -> None:
        """A stream whose client neither takes nor sends anything for `stall_timeout_s`
        is ended, and its place given to others."""
        self._limits = limits
        self._observers = observers
        self._stall_timeout_s = stall_timeout_s
        self._admission = _Admission(limits.max_concurrent_calls, read_priority)
        self._admission_of_work = _AdmissionOfWork(self._admission)

    @property
    def under_way(self) -> int:
        """How many calls are being answered."""
        return self._admission.under_way

    def handlers(self, service: ServiceDescriptor, servicer: object) -> dict[str, Handler]:
        """A handler for each method of the service, by name."""
        return {method.name: self._handler(method, servicer) for method in service.methods}

    def _handler(self, method: MethodDescriptor, servicer: object) -> Handler:
        behaviour = getattr(servicer, _snake_case(method.name))
        decode = self._decoder(method)
        begins = [observer.watch(method) for observer in self._observers]
        admission = self._admission if method.name in READS else self._admission_of_work
        if method.client_streaming:
            call: Any = self._duplex(behaviour, decode, admission)
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
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def call(_: AsyncIterator[bytes], context: Context) -> None:
            async def requests() -> AsyncIterator[Any]:
                while (data := await self._receive(context)) is not None:
                    yield decode(data)

            try:
                with admission:
                    await self._send(behaviour(requests()), context)
            except Exception as error:
                await abort(context, error)

        return call

    async def _receive(self, context: Context) -> bytes | None:
        """The next message; None at the end of the client's stream."""
        with self._patience("sent"):
            data = await context.read()
        return None if data is grpc.aio.EOF else data

    async def _send(self, answers: AsyncIterator[Answer], context: Context) -> None:
        async with aclosing(answers):  # type: ignore[type-var]
            async for answer in answers:
                message = _encoded(answer, context)
                with self._patience("took"):
                    await context.write(message)

    @contextmanager
    def _patience(self, did: str) -> Iterator[None]:
        """Raises OverloadedError if the client keeps the block waiting for too long."""
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
                f"the client {did} nothing for {self._stall_timeout_s:g} s: others wait"
            ) from None
        finally:
            timer.cancel()

    def _decoder(self, method: MethodDescriptor) -> Callable[[bytes], Any]:
        message_type, most = method.input_type, self._limits.max_message_bytes
        parse = GetMessageClass(message_type).FromString

        def decode(data: bytes) -> Any:
            if len(data) > most:
                raise LimitExceededError(
                    FieldViolation("request", f"has {len(data)} bytes, {most} at most")
                )
            try:
                return parse(data)
            except DecodeError:
                raise InvalidRequestError(
                    FieldViolation("request", f"is not the bytes of a {message_type.full_name}")
                ) from None

        return decode


class _Admission:
    """The places of all calls: a read has one within. Not made anew for each call, which
    takes longer than to answer some."""

    def __init__(self, most: int, read_priority: ReadPriority) -> None:
        self.most = most
        self.under_way = 0
        self._read_priority = read_priority

    def __enter__(self) -> None:
        if self.under_way >= self.most:
            raise self.refusal()
        self.under_way += 1
        self._read_priority.note_read()

    def __exit__(self, *_: object) -> None:
        self.under_way -= 1

    def refusal(self) -> OverloadedError:
        """What is raised if none is free."""
        return OverloadedError(f"{self.most} calls are under way, as many as are taken on at once")


class _AdmissionOfWork:
    """The places among them that writers may have."""

    def __init__(self, all_calls: _Admission) -> None:
        self._all_calls = all_calls
        self._most = max(all_calls.most * 3 // 4, 1)
        self._under_way = 0

    def __enter__(self) -> None:
        if self._under_way >= self._most:
            raise OverloadedError(f"{self._most} writers are under way; the rest is for reads")
        if self._all_calls.under_way >= self._all_calls.most:
            raise self._all_calls.refusal()
        self._all_calls.under_way += 1
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._all_calls.under_way -= 1
        self._under_way -= 1


def _encoded(answer: Answer, context: Context) -> bytes:
    if isinstance(answer, Message):
        return answer.SerializeToString()
    if isinstance(answer, Degraded):
        context.set_trailing_metadata(DEGRADED_METADATA)
        # gRPC takes no subclass of bytes for bytes.
        return bytes(answer)
    return answer


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends a call with what its caller is told of an error."""
    if isinstance(error, TileCacheError):
        await _abort_with(context, status_of(error))
    if isinstance(error, grpc.aio.InternalError):
        # gRPC could not send: the client is gone.
        raise asyncio.CancelledError from error
    log.error("call_met_a_defect", exc_info=error)
    await _abort_with(context, internal_status())


async def _abort_with(context: Context, status: status_pb2.Status) -> NoReturn:
    try:
        await context.abort(
            CODES[status.code],
            status.message,
            (("grpc-status-details-bin", status.SerializeToString()),),
        )
    except grpc.aio.InternalError:
        # The client went before it could be told.
        raise asyncio.CancelledError from None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
