"""The daemon's metrics: counts of calls, and the state at the time of the scrape.

The metrics of calls have the names that go-grpc-prometheus established.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tilecache_daemon.cache.tile_cache import TileCache
from tilecache_daemon.clock import Clock
from tilecache_daemon.rpc.call_counts import LATENCY_BOUNDS_S, CallCounts
from tilecache_daemon.rpc.calls import Calls
from tilecache_daemon.schema.migrator import MigrationResult
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.service.information import ServerInfo
from tilecache_daemon.service.storage import Usage
from tilecache_daemon.store.database import Database
from tilecache_daemon.supervisor import Supervisor

_HOUR_S: Final = 3_600
_DAY_S: Final = 24 * _HOUR_S
AGE_BUCKETS_S: Final = (
    *(60, 600, _HOUR_S, 6 * _HOUR_S),
    *(days * _DAY_S for days in (1, 2, 7, 14, 30, 60, 90, 180, 365, 730)),
)
_LATENCY_BOUNDS: Final = (*map(floatToGoString, LATENCY_BOUNDS_S), "+Inf")
_RPC: Final = ("grpc_type", "grpc_service", "grpc_method")
_TYPES: Final = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


class Sources(NamedTuple):
    """Whose state is exposed. It is read in the scraper's thread, without waiting."""

    information: ServerInfo
    """Only what does not change is used."""
    migration: MigrationResult
    clock: Clock
    database: Database
    cache: TileCache
    accesses: AccessLog
    calls: Calls
    supervisor: Supervisor


class Metrics:
    """All metrics of one daemon."""

    def __init__(self, call_counts: CallCounts) -> None:
        # The time at which each series was created is not needed, and doubles the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.registry.register(_CallCollector(call_counts))
        self._eviction_age = Histogram(
            "tilecache_eviction_age_seconds",
            "Time since an evicted tile was last used, or stored if it never was.",
            buckets=AGE_BUCKETS_S,
            registry=self.registry,
        )
        self._usage: Usage | None = None
        ProcessCollector(registry=self.registry)

    def note_evicted(self, ages: Iterable[timedelta]) -> None:
        """Counts evicted tiles by the time since they were last used."""
        for age in ages:
            self._eviction_age.observe(age.total_seconds())

    def note_usage(self, usage: Usage) -> None:
        """Sets what is stored, for the scrapes until the next call."""
        self._usage = usage

    def expose(self) -> str:
        """All metrics in Prometheus's text format. Takes milliseconds."""
        return generate_latest(self.registry).decode()

    def read_from(self, sources: Sources) -> None:
        """Adds their state to the metrics."""
        self.registry.register(_StateCollector(sources, lambda: self._usage))


class _CallCollector(Collector):
    """Reads the counts of calls."""

    def __init__(self, call_counts: CallCounts) -> None:
        self._call_counts = call_counts

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "Calls that began.", labels=_RPC)
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "Calls that ended, by their status.",
            labels=(*_RPC, "grpc_code"),
        )
        latency = HistogramMetricFamily(
            "grpc_server_handling_seconds", "How long calls took, in seconds.", labels=_RPC
        )
        for counts in self._call_counts.methods:
            method = counts.method
            kind = _TYPES[method.client_streaming, method.server_streaming]
            rpc = (kind, method.containing_service.full_name, method.name)
            started.add_metric(rpc, counts.started)
            handled.add_metric((*rpc, "OK"), counts.succeeded)
            for code, count in counts.failed.items():
                handled.add_metric((*rpc, code.name), count)
            if not counts.is_timed:
                continue
            buckets = list(zip(_LATENCY_BOUNDS, accumulate(counts.within), strict=True))
            latency.add_metric(rpc, buckets, counts.seconds)
        yield from (started, handled, latency)


class _StateCollector(Collector):
    """Reads state that is in memory. Uses neither the database nor the event loop."""

    def __init__(self, sources: Sources, usage: Callable[[], Usage | None]) -> None:
        self._sources = sources
        self._started_at = sources.clock.monotonic()
        self._usage = usage

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._daemon()
        yield from self._tasks()
        yield from self._database()
        yield from self._cache()
        if usage := self._usage():
            yield from _storage(usage)

    def _daemon(self) -> Iterator[Metric]:
        info, migration = self._sources.information, self._sources.migration
        about = {
            "version": info.daemon_version,
            "contract_version": info.contract_version,
            "schema_revision": info.schema_revision,
            "namespace_uuid": info.namespace_uuid,
        }
        yield InfoMetricFamily("tilecache", "Versions, and the namespace of all ids.", about)
        uptime_s = self._sources.clock.monotonic() - self._started_at
        yield _gauge("uptime_seconds", "Uptime in seconds (monotonic).", uptime_s)
        applied = len(migration.revisions_applied)
        yield _gauge("migrations_applied", "Schema revisions that this start applied.", applied)
        yield _gauge(
            "migration_seconds", "How long this start's migration took.", migration.elapsed_s
        )
        trusted = self._sources.clock.trusted
        yield _gauge("clock_trusted", "Whether the time of day is trusted.", trusted)
        waiting = self._sources.accesses.pending_count
        yield _gauge("accesses_pending", "Recorded accesses that are not yet written.", waiting)
        under_way = self._sources.calls.under_way
        yield _gauge("calls_under_way", "Calls that are being answered.", under_way)
        most = info.limits.max_concurrent_calls
        yield _gauge("calls_max", "Calls that are accepted at once.", most)

        watches = self._sources.calls.open_watches
        yield _gauge("watches_open", "WatchTiles streams that are open.", watches)
        most = info.limits.max_watch_streams
        yield _gauge("watches_max", "WatchTiles streams that are accepted at once.", most)

    def _tasks(self) -> Iterator[Metric]:
        failures = CounterMetricFamily(
            "tilecache_background_task_failures",
            "Unexpected errors that ended a background task, which is then restarted.",
            labels=("task",),
        )
        running = GaugeMetricFamily(
            "tilecache_background_task_running",
            "Whether a background task is running; it is not while it waits for its restart.",
            labels=("task",),
        )
        for task in self._sources.supervisor.tasks:
            failures.add_metric((task.name,), task.failures)
            running.add_metric((task.name,), task.running)
        yield failures
        yield running

    def _database(self) -> Iterator[Metric]:
        available = self._sources.database.available
        yield _gauge("database_available", "Whether PostgreSQL answers.", available)
        pool = self._sources.database.pool_status
        yield _gauge("pool_connections", "Connections to PostgreSQL.", pool.size)
        yield _gauge("pool_connections_in_use", "Connections that a call uses.", pool.in_use)
        yield _gauge("pool_connections_max", "The largest number of connections.", pool.max_size)
        yield _gauge("pool_waiting", "Calls that wait for a connection.", pool.waiting)

    def _cache(self) -> Iterator[Metric]:
        cache = self._sources.cache.status
        yield _counter("cache_hits", "Reads answered from memory.", cache.hits)
        yield _counter("cache_misses", "Reads that went to PostgreSQL.", cache.misses)
        yield _gauge("cache_tiles", "Tiles in memory.", cache.tiles)
        yield _gauge("cache_used_bytes", "Bytes of memory that they take.", cache.used_bytes)
        yield _gauge("cache_max_bytes", "The ceiling of these bytes; 0: no cache.", cache.max_bytes)


def _storage(usage: Usage) -> Iterator[Metric]:
    labels = ("zoom", "source", "label", "pending_upload")
    tiles = GaugeMetricFamily("tilecache_stored_tiles", "Stored tiles.", labels=labels)
    used = GaugeMetricFamily("tilecache_stored_bytes", "Bytes of their image files.", labels=labels)
    for row in usage.rows:
        values = (str(row.zoom), row.source, row.label, str(row.pending_upload).lower())
        tiles.add_metric(values, row.tile_count)
        used.add_metric(values, row.used_bytes)
    yield tiles
    yield used
    count, byte_count = usage.pending_removal
    yield _gauge("stored_max_bytes", "The ceiling of stored bytes; 0: none.", usage.max_used_bytes)
    yield _gauge("pending_removal_tiles", "Evicted tiles whose files may remain.", count)
    yield _gauge("pending_removal_bytes", "Bytes of these files.", byte_count)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tilecache_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tilecache_{name}", text, value)
