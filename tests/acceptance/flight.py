"""The part of the demo that prepares a flight from a plan of QGroundControl."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.imagery import cut_blue_marble

PLAN = Path(__file__).parents[1] / "plans/survey.plan"
ZOOMS = (12, 14)
BOX = (50.28, 30.55, 50.45, 30.83)

Operate = Callable[..., Any]
Check = Callable[..., None]


def prepare_flight(operate: Operate, check: Check, pyramid: Path, day: str) -> None:
    """Fetches what the route lacks, pins it, and evicts everything else."""
    region = ("--zoom", f"{ZOOMS[0]}-{ZOOMS[1]}", "--route", PLAN, "--width", 500)

    before = _last(operate("coverage", *region, "--on", day, "--json", quiet=True))
    operate("coverage", *region, "--on", day)
    check(f"{before['missing']} of {before['cells']} cells are missing", before["usable"] == 0)

    listed = operate("missing", *region, "--on", day, "--json", quiet=True).stdout.splitlines()
    cells = [json.loads(line) for line in listed]
    wanted = {(each["zoom"], each["x"], each["y"]) for each in cells if each["kind"] == "cell"}
    check(f"{len(wanted)} cells are on the list", len(wanted) == before["missing"])

    cut_blue_marble(pyramid, *ZOOMS, BOX)
    for path in pyramid.glob("1[2-4]/*/*.jpg"):
        zoom, x, y = (*path.parts[-3:-1], path.stem)
        if (int(zoom), int(x), int(y)) not in wanted:
            path.unlink()
    imported = operate(
        "import", pyramid, "--min-zoom", ZOOMS[0], "--on-conflict", "replace-if-newer", quiet=True
    )
    after = _last(operate("coverage", *region, "--on", day, "--json", quiet=True))
    operate("coverage", *region, "--on", day)
    check(
        "all of them are usable after the import",
        imported.returncode == 0 and after["usable"] == after["cells"] == len(wanted),
        imported.stderr,
    )

    pinned = operate("pins", "set", "next-flight", *region, "--until", day)
    check("the route is pinned", pinned.returncode == 0 and "0 missing" in pinned.stdout)
    evicted = operate("evict", "--max-used", 0, "--yes")
    held = _last(operate("pins", "list", "--json", quiet=True))
    kept = _last(operate("coverage", *region, "--json", quiet=True))
    check(
        f"an eviction of everything spared the {held['tile_count']} pinned tiles and named the pin",
        evicted.returncode == 1
        and "next-flight" in evicted.stdout
        and held["tile_count"] == kept["usable"] == len(wanted),
    )


def _last(ended: Any) -> dict[str, Any]:
    """The last line of JSON Lines."""
    summary: dict[str, Any] = json.loads((ended.stdout.splitlines() or ["{}"])[-1])
    return summary
