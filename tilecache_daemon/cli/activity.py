"""What the daemon counts of itself, read from the text of its metrics."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Distribution(NamedTuple):
    """How many values there were, and how many of them up to each bound."""

    bounds: tuple[tuple[float, float], ...]
    """(bound, count), with rising bounds; the last is infinite."""

    @property
    def total(self) -> int:
        return int(self.bounds[-1][1]) if self.bounds else 0

    def percentile(self, percent: float) -> float | None:
        """The bound within which so many percent lie; None if that is beyond all."""
        wanted = self.total * percent / 100
        bound = next(bound for bound, count in self.bounds if count >= wanted)
        return bound if math.isfinite(bound) else None


class CallActivity(NamedTuple):
    """How the calls of an RPC went since the start."""

    method: str
    ended: int
    failed: int
    seconds: Distribution


@dataclass(frozen=True)
class Activity:
    """The samples of one scrape."""

    samples: list[Sample]

    @classmethod
    def read(cls, text: str) -> "Activity":
        """From the text that Prometheus reads."""
        families = text_string_to_metric_families(text)
        return cls([sample for family in families for sample in family.samples])

    def value(self, name: str) -> float:
        """A metric without labels; 0 if there is none."""
        return next((sample.value for sample in self.samples if sample.name == name), 0.0)

    def distribution(self, name: str) -> Distribution:
        """A histogram without labels."""
        return _distribution(self._named(f"{name}_bucket"))

    @property
    def calls(self) -> list[CallActivity]:
        """The RPCs that were called, the most called first."""
        ended: defaultdict[str, float] = defaultdict(float)
        failed: defaultdict[str, float] = defaultdict(float)
        buckets: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in self._named("grpc_server_handled_total"):
            method = sample.labels["grpc_method"]
            ended[method] += sample.value
            if sample.labels["grpc_code"] != "OK":
                failed[method] += sample.value
        for sample in self._named("grpc_server_handling_seconds_bucket"):
            buckets[sample.labels["grpc_method"]].append(sample)
        return [
            CallActivity(method, int(count), int(failed[method]), _distribution(buckets[method]))
            for method, count in sorted(ended.items(), key=lambda item: -item[1])
            if count
        ]

    def _named(self, name: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.name == name]


def format_seconds(seconds: float | None) -> str:
    """A time for people; None is one that is not known to have an end."""
    if seconds is None:
        return "longer"
    for unit, unit_s in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= unit_s:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds * 1_000:g} ms"


def _distribution(buckets: Iterable[Sample]) -> Distribution:
    return Distribution(
        tuple(sorted((float(sample.labels["le"]), sample.value) for sample in buckets))
    )
