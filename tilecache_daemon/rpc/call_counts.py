"""Counts of calls since the start: results and latencies. Always on, so it must be cheap."""

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor

from tilecache_daemon.rpc.calls import WATCHES
from tilecache_daemon.rpc.observers import Begin, End

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

LATENCY_BOUNDS_S: Final = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)


class MethodCounts:
    """The calls of one RPC. Other threads may read the counts while calls are in progress."""

    __slots__ = ("failed", "method", "seconds", "started", "succeeded", "within")

    def __init__(self, method: MethodDescriptor) -> None:
        self.method = method
        self.started = 0
        self.succeeded = 0
        self.failed = {code: 0 for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
        self.seconds = 0.0
        self.within = [0] * (len(LATENCY_BOUNDS_S) + 1)
        """A histogram: how many calls took longer than the previous bound and up to this one.
        The last bucket has no upper bound."""

    @property
    def is_timed(self) -> bool:
        """Whether latencies are counted. How long a watch stays open is none."""
        return self.method.name not in WATCHES


class CallCounts:
    """A `CallObserver` that counts calls."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._methods: dict[str, MethodCounts] = {}

    @property
    def methods(self) -> list[MethodCounts]:
        """The counts of each RPC that is served."""
        return list(self._methods.values())

    def watch(self, method: MethodDescriptor) -> Begin:
        """See `CallObserver`. The counts of an RPC include all sockets that serve it."""
        counts = self._methods.setdefault(method.full_name, MethodCounts(method))
        is_timed = counts.is_timed
        monotonic = self._monotonic

        def begin(_: "Context") -> End:
            counts.started += 1
            began_at = monotonic()

            def end(code: grpc.StatusCode) -> None:
                if is_timed:
                    elapsed_s = monotonic() - began_at
                    counts.seconds += elapsed_s
                    counts.within[bisect_left(LATENCY_BOUNDS_S, elapsed_s)] += 1
                if code is grpc.StatusCode.OK:
                    counts.succeeded += 1
                else:
                    counts.failed[code] += 1

            return end

        return begin
