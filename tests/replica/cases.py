"""The cases of cases.json, and what of them an implementation must do."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

CASES: list[Json] = json.loads(Path(__file__).with_name("cases.json").read_text())["cases"]
NAMES: list[str] = [case["name"] for case in CASES]


class Tile(NamedTuple):
    """A tile of the cases."""

    tile_uuid: str
    x: int
    y: int
    rank: int
    content: int
    usable: bool

    @classmethod
    def parse(cls, text: str) -> "Tile":
        found = re.fullmatch(r"(\w+)@(\d+),(\d+)(?::(\d+))?(?:#(\d+))?(!?)", text)
        assert found is not None, text
        tile_uuid, x, y, rank, content, unusable = found.groups()
        return cls(tile_uuid, int(x), int(y), int(rank or 0), int(content or 1), not unusable)

    def __str__(self) -> str:
        return "".join(
            (
                f"{self.tile_uuid}@{self.x},{self.y}",
                f":{self.rank}" if self.rank else "",
                f"#{self.content}" if self.content != 1 else "",
                "" if self.usable else "!",
            )
        )


def check(step: Json, observed: Json) -> None:
    """Compares what an implementation did in a step, and holds after it, with the case.

    `observed` has everything that `then` may name, but for `by_id` and `repacked`, which an
    implementation need not have. In `by_id` it has the tiles of all ids that are found, and of a
    held block in `usable` those tiles that a query returns by default.
    """
    then = step.get("then", {})
    expected = {"requests": [], "changed": [], "repacked": []} | then
    if "held" in expected:
        expected["held"] = {
            key: block | {"usable": [tile for tile in block["tiles"] if "!" not in tile]}
            for key, block in expected["held"].items()
        }
    expected["by_id"] = _tiles_by_id(expected.get("by_id"), observed["held"])
    for optional in {"by_id", "repacked"} - observed.keys():
        del expected[optional]
    assert {name: observed[name] for name in expected} == expected


def _tiles_by_id(named: Json | None, held: Json) -> Json:
    """The tiles that are found by id: those that the case names, else all held ones."""
    if named is not None:
        return {tile_uuid: tile for tile_uuid, tile in named.items() if tile}
    tiles = [tile for block in held.values() for tile in block["tiles"]]
    return {Tile.parse(tile).tile_uuid: tile for tile in tiles}
