"""The daemon's activity, parsed from its metrics."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Distribution(NamedTuple):
    """A cumulative histogram."""

    bounds: tuple[tuple[float, float], ...]
    """(upper bound, cumulative count) in rising order; the last bound is infinite."""

    @property
    def total(self) -> int:
        return int(self.bounds[-1][1]) if self.bounds else 0

    def percentile(self, percent: float) -> float | None:
        """The lowest bound that covers `percent` of the values; None if that is infinite, or if
        nothing is measured."""
        rank = self.total * percent / 100
        bound = next((bound for bound, count in self.bounds if count >= rank), math.inf)
        return bound if math.isfinite(bound) else None

    def format_percentile(self, percent: float) -> str:
        """`percentile` as text, for values in seconds."""
        if not self.bounds:
            return "-"
        bound = self.percentile(percent)
        if bound is None:
            return f"over {_format_seconds(self.bounds[-2][0])}"
        return f"up to {_format_seconds(bound)}"


class CallActivity(NamedTuple):
    """The calls of an RPC since the daemon started."""

    method: str
    ended: int
    failed: dict[str, int]
    """Number of calls for each status code except OK, the most frequent first."""
    seconds: Distribution
    """Without bounds for streams that stay open."""


class TaskActivity(NamedTuple):
    """How a background task has run since the start."""

    name: str
    running: bool
    failures: int


@dataclass(frozen=True)
class Activity:
    """The samples of one scrape."""

    samples: list[Sample]

    @classmethod
    def parse(cls, text: str) -> "Activity":
        """`text` is in Prometheus' text format."""
        families = text_string_to_metric_families(text)
        return cls([sample for family in families for sample in family.samples])

    def value(self, name: str) -> float:
        """The value of a metric without labels; 0 if it is missing."""
        return next((sample.value for sample in self.samples if sample.name == name), 0.0)

    def distribution(self, name: str) -> Distribution:
        """A histogram without labels."""
        return _distribution(self._named(f"{name}_bucket"))

    @property
    def calls(self) -> list[CallActivity]:
        """The RPCs that were called, the most called first."""
        ended: Counter[str] = Counter()
        failed: defaultdict[str, Counter[str]] = defaultdict(Counter)
        buckets: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in self._named("grpc_server_handled_total"):
            method, code, count = _method(sample), sample.labels["grpc_code"], int(sample.value)
            ended[method] += count
            if count and code != "OK":
                failed[method][code] += count
        for sample in self._named("grpc_server_handling_seconds_bucket"):
            buckets[_method(sample)].append(sample)
        return [
            CallActivity(
                method, count, dict(failed[method].most_common()), _distribution(buckets[method])
            )
            for method, count in ended.most_common()
            if count
        ]

    @property
    def background_tasks(self) -> list[TaskActivity]:
        """In the order of their start."""
        running = self._named("tilecache_background_task_running")
        failures = self._named("tilecache_background_task_failures_total")
        return [
            TaskActivity(task.labels["task"], bool(task.value), int(failed.value))
            for task, failed in zip(running, failures, strict=True)
        ]

    def _named(self, name: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.name == name]


def _format_seconds(seconds: float) -> str:
    for unit, unit_s in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= unit_s:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds * 1_000:g} ms"


def _method(sample: Sample) -> str:
    return sample.labels["grpc_method"]


def _distribution(buckets: Iterable[Sample]) -> Distribution:
    return Distribution(
        tuple(sorted((float(sample.labels["le"]), sample.value) for sample in buckets))
    )
