"""Rounds of two ways of doing the same work, and what is said of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Result = TypeVar("Result")


@dataclass
class Ratio:
    """A figure of the benchmark: a ratio or a measure, from several rounds."""

    key: str
    what: str
    bound: float
    at_least: bool
    rounds: list[float]
    detail: str = ""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each side, by round, for the plot and the table."""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def reached(self) -> bool:
        return self.median >= self.bound if self.at_least else self.median <= self.bound


def timed(work: Callable[..., Result], *arguments: object) -> tuple[float, Result]:
    """How many seconds a piece of work takes, and what it gives."""
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """How long a piece of work takes."""
    return timed(work, *arguments)[0]


def alternate(
    rounds: int, *works: Callable[[], object], warm_up: int = 0
) -> tuple[list[float], ...]:
    """Seconds of each work, round by round in turn, so that a drift meets all alike."""
    for _ in range(warm_up):
        for work in works:
            work()
    taken = [[seconds(work) for work in works] for _ in range(rounds)]
    return tuple(list(column) for column in zip(*taken, strict=True))


def quotients(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def percentile(values: Sequence[float], percent: int) -> float:
    """As `statistics.quantiles` has it."""
    return statistics.quantiles(values, n=100)[percent - 1]


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
