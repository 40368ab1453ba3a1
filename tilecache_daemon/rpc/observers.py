"""Who watches calls from outside: counts, traces, and the log at its debug level."""

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

End = Callable[[grpc.StatusCode], None]
"""Is told how a call ended."""
Begin = Callable[["Context"], End]
"""Is told that a call has begun."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class CallObserver(Protocol):
    """Is asked once for each RPC when the server is built."""

    def watch(self, method: MethodDescriptor) -> Begin:
        """What to call when a call of this RPC begins."""


class CallLog:
    """A line a call, at the debug level."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic

    def watch(self, method: MethodDescriptor) -> Begin:
        """As `CallObserver` has it."""

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
    """A handler that tells of each call's beginning and end, if there is anybody to tell."""
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
    # Left there by context.abort(); 0 if that was not called.
    return cast("grpc.StatusCode | None", context.code()) or grpc.StatusCode.UNKNOWN
