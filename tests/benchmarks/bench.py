"""`make bench`: the daemon beside its peers, in one run on one machine.

Prints a table, draws build/bench.png and writes build/bench.json. Figures may be
named to measure only some: `python -m tests.benchmarks.bench bulk reading`.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.costs import measure_costs
from tests.benchmarks.measure import Ratio, spread
from tests.benchmarks.pins import measure_pins
from tests.benchmarks.reading import EDGE, measure_reading, measure_rest, measure_size
from tests.benchmarks.replicas import measure_flight, measure_updates, measure_windows
from tests.benchmarks.stage import Stage
from tests.benchmarks.writing import (
    TILES,
    measure_bulk,
    measure_migrations,
    measure_start,
    measure_touches,
)

BUILD = Path("build")

GROUPS: dict[str, Callable[[Stage], list[Ratio]]] = {
    "migrations": measure_migrations,
    "start": lambda stage: measure_start(stage, stage.database()),
    "rest": lambda stage: measure_rest(stage, stage.database()),
    "reading": lambda stage: measure_reading(stage, stage.database(EDGE, TILES)),
    "windows": lambda stage: measure_windows(stage, stage.database(EDGE, EDGE * EDGE)),
    "flight": lambda stage: measure_flight(stage, stage.database(EDGE, EDGE * EDGE)),
    "updates": lambda stage: measure_updates(stage, stage.database(EDGE, EDGE * EDGE)),
    "bulk": measure_bulk,
    "touches": measure_touches,
    "costs": measure_costs,
    "pins": measure_pins,
    "size": lambda stage: measure_size(stage, stage.database(100), stage.database(1_000)),
}


def main(names: list[str]) -> int:
    """Measures the named groups, or all; 1 if a figure misses its bound."""
    ratios: list[Ratio] = []
    directory = Path(tempfile.mkdtemp(prefix="tilecache-bench-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        stage = Stage(directory)
        try:
            for name in names or GROUPS:
                sys.stderr.write(f"measuring {name}\n")
                ratios += GROUPS[name](stage)
        finally:
            stage.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    show(ratios)
    BUILD.mkdir(exist_ok=True)
    figures = {ratio.key: round(ratio.median, 4) for ratio in ratios}
    (BUILD / "bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    if not names:
        from tests.benchmarks.plot import draw

        draw(ratios, BUILD / "bench.png")
    return 0 if all(ratio.reached for ratio in ratios) else 1


def show(ratios: list[Ratio]) -> None:
    """The table that a person reads."""
    table = Table(
        title=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    )
    for column in ("figure", "median (least to most)", "must reach", ""):
        table.add_column(column)
    for ratio in ratios:
        bound = f"{'>=' if ratio.at_least else '<='} {ratio.bound:g}"
        table.add_row(ratio.key, spread(ratio.rounds), bound, "ok" if ratio.reached else "MISSED")
        for name, values in ratio.parts.items():
            table.add_row(f"  {name}", spread([value * 1_000 for value in values]) + " ms")
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
