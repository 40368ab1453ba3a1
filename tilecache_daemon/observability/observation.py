"""Metrics, traces and the log of calls, as far as they are configured."""

import importlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tilecache_daemon.clock import Clock
from tilecache_daemon.config import Config, ConfigError
from tilecache_daemon.observability.metrics import Metrics, Sources
from tilecache_daemon.observability.metrics_listener import MetricsListener
from tilecache_daemon.rpc.call_counts import CallCounts
from tilecache_daemon.rpc.observers import CallLog, CallObserver
from tilecache_daemon.service.eviction import EvictionService
from tilecache_daemon.service.storage import StorageService

if TYPE_CHECKING:
    from tilecache_daemon.observability.tracing import Tracing

_OTLP_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Observation:
    """Metrics, and if they are configured their listener, traces and the log of calls."""

    def __init__(self, config: Config, clock: Clock) -> None:
        """Raises ConfigError if traces are configured and OpenTelemetry is not installed."""
        self._call_counts = CallCounts(clock.monotonic)
        self._metrics = Metrics(self._call_counts)
        self._tracing = _start_tracing(config.otlp_endpoint)
        self._call_log = CallLog(clock.monotonic) if config.log_level == "debug" else None
        self.listener: MetricsListener | None = None
        """None if metrics are served by `GetMetrics` only."""
        if config.metrics_address:
            self.listener = MetricsListener(
                config.metrics_address,
                self._metrics.registry,
                config.socket_mode,
                config.socket_group,
            )

    @property
    def observers(self) -> list[CallObserver]:
        """What is called at the beginning and the end of each call."""
        return list(self._present())

    def expose_metrics(self) -> str:
        """As `Metrics.expose`."""
        return self._metrics.expose()

    def start(self, sources: Sources, storage: StorageService, eviction: EvictionService) -> None:
        """Adds the daemon's state to the metrics, and listens for scrapers, which
        `listener.run` answers. Raises ListenError."""
        storage.on_usage(self._metrics.note_usage)
        eviction.on_evicted(self._metrics.note_evicted)
        self._metrics.read_from(sources)
        if self.listener:
            self.listener.listen()

    def stop(self) -> None:
        """Closes the listener and exports the last traces. Blocks; idempotent."""
        if self.listener:
            self.listener.close()
        if self._tracing:
            self._tracing.stop()
            self._tracing = None

    def _present(self) -> Iterator[CallObserver]:
        for observer in (self._call_counts, self._tracing, self._call_log):
            if observer:
                yield observer


def _start_tracing(endpoint: str | None) -> "Tracing | None":
    if not endpoint and not any(map(os.environ.get, _OTLP_VARIABLES)):
        return None
    try:
        tracing = importlib.import_module("tilecache_daemon.observability.tracing")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"otlp_endpoint: there is no {error.name}; pip install 'tilecache-daemon[otel]'"
        ) from error
    started: Tracing = tracing.start_tracing(endpoint)
    return started
