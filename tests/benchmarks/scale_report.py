"""What `make bench-scale` reports: rows, bounds, tables and a file."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from tilecache_daemon.postgres.memory import available_memory_bytes, memory_settings

BOUNDS: Final = {"bulk": (1.0, 3_000_000), "coverage": (3.0, 1_000_000)}
"""What a ratio must reach, from how many tiles on. With fewer, `make bench` has the bounds."""

MEASURED: Final = {
    "restart": "start of the daemon's process until it serves; PostgreSQL is running",
    "restart_after_kill": "the same with the daemon's own PostgreSQL, which was killed after the "
    "inserts and evictions below and recovers from the write-ahead log",
    "labels_after_start": "from serving until all labels have been re-evaluated, which each start "
    "does in the background",
    "usage": "GetStorageUsage, beside a recount with GROUP BY; "
    "ratio: the daemon's time over the recount's",
    "coverage": "DescribeCoverage of 4,194,304 cells, beside SELECT x, y, freshness_status "
    "of the same cells, read as a stream with psycopg; ratio: the daemon's time over psycopg's",
    "bulk": "200,000 more tiles (in a small trial: a sixth of those stored) through "
    "BulkInsertTiles, beside psycopg's binary COPY of the same rows into a copy of the database; "
    "ratio: the daemon's rate over COPY's",
    "evict": "EvictTiles of the 10,000 least recently used tiles (in a small trial: a tenth "
    "of those stored), beside one DELETE of the same tiles from the copy, which lists no files; "
    "ratio: the daemon's time over DELETE's",
}
"""What the rows of each figure measure."""


@dataclass
class Figure:
    """What was measured at one number of stored tiles, in seconds by round."""

    key: str
    tiles: int
    daemon: list[float]
    peer: list[float] = field(default_factory=list)
    ratio: float | None = None
    note: str = ""
    amount: int = 1
    """Tiles of a round where their number depends on the size."""

    @property
    def each(self) -> float:
        """The daemon's time for each tile of a round, or for a round."""
        return median(self.daemon) / self.amount

    @property
    def bound(self) -> float | None:
        bound, tiles = BOUNDS.get(self.key, (None, 0))
        return bound if self.tiles >= tiles else None

    @property
    def at_least(self) -> bool:
        """Whether the ratio is of rates, not of times."""
        return self.key == "bulk"

    @property
    def reached(self) -> bool:
        if self.bound is None or self.ratio is None:
            return True
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


def show(figures: Sequence[Figure]) -> None:
    """A table for each figure: median, smallest and largest value of the rounds."""
    console = Console(width=110)
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()))
    for key, measured in MEASURED.items():
        table = Table(title=f"{key}: {measured}", title_justify="left", expand=True)
        for column in ("tiles", "daemon, ms", "growth", "beside it, ms", "ratio", "must reach", ""):
            table.add_column(column)
        same = [figure for figure in figures if figure.key == key]
        for figure in same:
            table.add_row(
                f"{figure.tiles:,}",
                _milliseconds(figure.daemon),
                f"{figure.each / same[0].each:.2f}",
                _milliseconds(figure.peer),
                f"{figure.ratio:.3g}" if figure.ratio else "",
                f"{'>=' if figure.at_least else '<='} {figure.bound:g}" if figure.bound else "",
                figure.note if figure.reached else f"MISSED; {figure.note}",
            )
        console.print(table)


def write(figures: Sequence[Figure], path: Path) -> None:
    """A JSON file: what each row measures, and the seconds of each round."""
    rows = [
        {"what": MEASURED[figure.key]}
        | asdict(figure)
        | {"daemon": _rounded(figure.daemon), "peer": _rounded(figure.peer)}
        | {"at_least": figure.at_least, "bound": figure.bound, "reached": figure.reached}
        for figure in figures
    ]
    path.parent.mkdir(exist_ok=True)
    content = {"environment": environment(), "figures": rows}
    path.write_text(json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, object]:
    """The machine, and the settings of PostgreSQL that follow its memory."""
    memory_bytes = available_memory_bytes()
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "Python": platform.python_version(),
        "memory_mib": memory_bytes // 1024**2,
    } | memory_settings(memory_bytes)


def _milliseconds(values: Sequence[float]) -> str:
    if not values:
        return ""
    digits = 0 if median(values) > 0.1 else 1
    middle, *bounds = (
        f"{value * 1_000:,.{digits}f}" for value in (median(values), min(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({' to '.join(bounds)})"


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
