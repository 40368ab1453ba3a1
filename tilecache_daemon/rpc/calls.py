"""What every call goes through: admission, decoding, and errors told in one way.

grpc.aio's interceptors would do the same at a cost per call; here the handlers
are wrapped once, when the server is built.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from tilecache_daemon.errors import (
    FieldViolation,
    InvalidRequestError,
    LimitExceededError,
    OverloadedError,
    TileCacheError,
)
from tilecache_daemon.models import Limits
from tilecache_daemon.rpc.observers import CallObserver, observed
from tilecache_daemon.rpc.status import internal_status, status_of

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

Answer = Message | bytes
DEGRADED_METADATA: Final = (("tilecache-degraded", "1"),)


class Degraded(bytes):
    """An answer from memory while PostgreSQL is away: it may be out of date."""


CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Calls:
    """Builds a service's handlers from an object with one method an RPC.

    The method for `GetTile` is `get_tile`. It takes the request, or an iterator
    of requests, and gives a message or its bytes, or an iterator of such.
    """

    def __init__(self, limits: Limits, observers: Sequence[CallObserver] = ()) -> None:
        self._limits = limits
        self._observers = observers
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """How many calls are being answered."""
        return self._under_way

    def handlers(self, service: ServiceDescriptor, servicer: object) -> dict[str, Handler]:
        """A handler for each method of the service, by name."""
        return {method.name: self._handler(method, servicer) for method in service.methods}

    def _handler(self, method: MethodDescriptor, servicer: object) -> Handler:
        behaviour = getattr(servicer, _snake_case(method.name))
        request_type = GetMessageClass(method.input_type)
        begins = [observer.watch(method) for observer in self._observers]
        if method.client_streaming:
            call: Any = self._duplex(behaviour, request_type)
            return _wrap(grpc.stream_stream_rpc_method_handler, observed(call, begins))
        if method.server_streaming:
            call = self._stream(behaviour, request_type)
            return _wrap(grpc.unary_stream_rpc_method_handler, observed(call, begins))
        call = self._unary(behaviour, request_type)
        return _wrap(grpc.unary_unary_rpc_method_handler, observed(call, begins))

    def _unary(
        self, behaviour: Callable[[Any], Awaitable[Answer]], request_type: type[Message]
    ) -> Callable[[bytes, Context], Awaitable[Answer]]:
        async def call(data: bytes, context: Context) -> Answer:
            try:
                with self._admitted():
                    answer = await behaviour(self._decode(data, request_type))
                    _mark(answer, context)
                    return answer
            except Exception as error:
                await abort(context, error)

        return call

    def _stream(
        self, behaviour: Callable[[Any], AsyncIterator[Answer]], request_type: type[Message]
    ) -> Callable[[bytes, Context], AsyncIterator[Answer]]:
        async def call(data: bytes, context: Context) -> AsyncIterator[Answer]:
            try:
                with self._admitted():
                    async for answer in behaviour(self._decode(data, request_type)):
                        _mark(answer, context)
                        yield answer
            except Exception as error:
                await abort(context, error)

        return call

    def _duplex(
        self,
        behaviour: Callable[[AsyncIterator[Any]], AsyncIterator[Answer]],
        request_type: type[Message],
    ) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[Answer]]:
        async def call(stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[Answer]:
            async def requests() -> AsyncIterator[Message]:
                async for data in stream:
                    yield self._decode(data, request_type)

            try:
                with self._admitted():
                    async for answer in behaviour(requests()):
                        yield answer
            except Exception as error:
                await abort(context, error)

        return call

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        most = self._limits.max_concurrent_calls
        if self._under_way >= most:
            raise OverloadedError(f"{most} calls are under way, as many as are taken on at once")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _decode(self, data: bytes, request_type: type[Message]) -> Message:
        most = self._limits.max_message_bytes
        if len(data) > most:
            raise LimitExceededError(
                FieldViolation("request", f"has {len(data)} bytes, {most} at most")
            )
        try:
            return request_type.FromString(data)
        except DecodeError:
            name = request_type.DESCRIPTOR.full_name
            raise InvalidRequestError(
                FieldViolation("request", f"is not the bytes of a {name}")
            ) from None


def _wrap(make: Callable[..., Handler], call: object) -> Handler:
    return make(call, request_deserializer=None, response_serializer=_encode)


def _mark(answer: Answer, context: Context) -> None:
    if isinstance(answer, Degraded):
        context.set_trailing_metadata(DEGRADED_METADATA)


def _encode(answer: Answer) -> bytes:
    if isinstance(answer, Message):
        return answer.SerializeToString()
    # gRPC takes no subclass of bytes for bytes.
    return bytes(answer) if isinstance(answer, Degraded) else answer


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends a call with what its caller is told of an error."""
    if isinstance(error, TileCacheError):
        await _abort_with(context, status_of(error))
    log.error("call_met_a_defect", exc_info=error)
    await _abort_with(context, internal_status())


async def _abort_with(context: Context, status: status_pb2.Status) -> NoReturn:
    await context.abort(
        CODES[status.code],
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()),),
    )


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
