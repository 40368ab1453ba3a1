"""Observers of calls, for counts, traces and debug logging."""

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

End = Callable[[grpc.StatusCode], None]
"""Called when a call ends, with its status code."""
Begin = Callable[["Context"], End]
"""Called when a call begins."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class CallObserver(Protocol):
    """Observes calls."""

    def watch(self, method: MethodDescriptor) -> Begin:
        """Returns the callback for calls of this RPC. Called once per RPC and socket, when the
        server is built."""


class CallLog:
    """Logs each call at debug level."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic

    def watch(self, method: MethodDescriptor) -> Begin:
        """See `CallObserver`."""

        def begin(_: "Context") -> End:
            began_at = self._monotonic()

            def end(code: grpc.StatusCode) -> None:
                elapsed_ms = round((self._monotonic() - began_at) * 1000, 3)
                log.debug("call", method=method.name, code=code.name, elapsed_ms=elapsed_ms)

            return end

        return begin


def observed(
    call: Callable[..., Awaitable[Any]], begins: Sequence[Begin]
) -> Callable[..., Awaitable[Any]]:
    """A handler that notifies observers of the beginning and the end of each call."""
    for begin in begins:
        call = _observed_by(begin, call)
    return call


def _observed_by(
    begin: Begin, call: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def observed_call(request: Any, context: "Context") -> Any:
        end = begin(context)
        try:
            answer = await call(request, context)
        except BaseException as error:
            end(_code(error, context))
            raise
        end(grpc.StatusCode.OK)
        return answer

    return observed_call


def _code(error: BaseException, context: "Context") -> grpc.StatusCode:
    if isinstance(error, CancelledError):
        remaining_s = context.time_remaining()
        late = remaining_s is not None and remaining_s <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    # Set by context.abort(); 0 if it was not called.
    return cast("grpc.StatusCode | None", context.code()) or grpc.StatusCode.UNKNOWN
