"""Counts of calls, with a clock that the test sets."""

import grpc
import pytest

from tilecache.v1 import tile_metadata_store_pb2
from tilecache_daemon.rpc.call_counts import LATENCY_BOUNDS_S, CallCounts

METHOD = tile_metadata_store_pb2.DESCRIPTOR.services_by_name["TileMetadataStore"].methods[0]


class Stopwatch:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_counts_of_an_rpc_include_all_sockets() -> None:
    counts = CallCounts(Stopwatch())
    for begin in (counts.watch(METHOD), counts.watch(METHOD)):
        begin(None)(grpc.StatusCode.OK)

    (rpc,) = counts.methods
    assert (rpc.started, rpc.succeeded, sum(rpc.within)) == (2, 2, 2)


def test_a_call_in_progress_is_counted_as_started_only() -> None:
    counts = CallCounts(Stopwatch())
    counts.watch(METHOD)(None)

    (rpc,) = counts.methods
    assert (rpc.started, rpc.succeeded, sum(rpc.within)) == (1, 0, 0)


def test_a_failed_call_is_counted_by_its_code() -> None:
    counts = CallCounts(Stopwatch())
    counts.watch(METHOD)(None)(grpc.StatusCode.NOT_FOUND)

    (rpc,) = counts.methods
    assert rpc.succeeded == 0
    assert {code: count for code, count in rpc.failed.items() if count} == {
        grpc.StatusCode.NOT_FOUND: 1
    }


@pytest.mark.parametrize(
    ("elapsed_s", "index"),
    [
        (0.0, 0),
        (LATENCY_BOUNDS_S[0], 0),
        (LATENCY_BOUNDS_S[0] * 1.01, 1),
        (LATENCY_BOUNDS_S[-1] + 1, len(LATENCY_BOUNDS_S)),
    ],
)
def test_a_latency_is_counted_in_the_bucket_of_its_upper_bound(
    elapsed_s: float, index: int
) -> None:
    stopwatch = Stopwatch()
    counts = CallCounts(stopwatch)
    end = counts.watch(METHOD)(None)
    stopwatch.now_s = elapsed_s
    end(grpc.StatusCode.OK)

    (rpc,) = counts.methods
    assert [bucket for bucket, count in enumerate(rpc.within) if count] == [index]
    assert rpc.seconds == elapsed_s
