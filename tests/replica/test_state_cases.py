"""The Python replica's state, beside the cases that all peers share."""

from collections.abc import Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from tests.replica.cases import CASES, NAMES, Json, Tile, check
from tilecache.mercator import BlockKey
from tilecache.replica_state import Block, ReplicaState, Request


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_state_is_as_the_case_says(case: Json) -> None:
    traits = Traits()
    state = ReplicaState(traits)

    for step in case["steps"]:
        check(step, observe(state, traits, step))
        # Others would keep memory that a block does not have any more.
        held = {id(tile) for block in state.blocks.values() for tile in block.tiles}
        assert {id(tile) for tile in state.tiles.values()} <= held


def observe(state: ReplicaState[Tile], traits: "Traits", step: Json) -> Json:
    """Performs a step; gives what it did, and what is held then."""
    traits.repacked.clear()
    requests: list[Request] = []
    changed: list[BlockKey] = []
    if "follow" in step:
        requests.append(state.follow(frozenset(map(key_of, step["follow"]))))
    if "reconnect_at_s" in step:
        requests.append(state.reconnect(step["reconnect_at_s"]))
    if "disconnect" in step:
        state.disconnect()
    if "message" in step:
        apply(state, step["message"], step.get("received_at_s", 0), requests, changed)
    return {
        "requests": [
            {
                "number": request.number,
                "held": {text_of(key): version.decode() for key, version in request.held.items()},
            }
            for request in requests
        ],
        "changed": sorted(map(text_of, set(changed))),
        "repacked": traits.repacked,
        "held": {text_of(key): observe_block(block) for key, block in state.blocks.items()},
        "by_id": {key: str(tile) for key, tile in state.tiles.items()},
        "synced": state.synced,
        "degraded": state.degraded,
        "confirmed_at_s": None if state.confirmed_at == -inf else state.confirmed_at,
    }


def apply(
    state: ReplicaState[Tile],
    message: Json,
    received_at: float,
    requests: list[Request],
    changed: list[BlockKey],
) -> None:
    number = message["number"]
    for block in message.get("blocks", ()):
        key, request = state.apply(number, update_of(block))
        changed += [key] if key else []
        requests += [request] if request else []
    if message.get("synced"):
        state.note_synced(number)
    if beat := message.get("heartbeat"):
        state.note_heartbeat(
            beat.get("age_ms"), beat.get("degraded", False), beat["elapsed_ms"], received_at
        )


def update_of(block: Json) -> Any:
    zoom, block_x, block_y = key_of(block["block"])
    return SimpleNamespace(
        zoom=zoom,
        block_x=block_x,
        block_y=block_y,
        version=block["version"].encode(),
        base_version=block.get("base", "").encode(),
        tiles=list(map(Tile.parse, block.get("tiles", ()))),
        removed_tile_uuids=block.get("removed", ()),
        is_partial=block.get("partial", False),
    )


def observe_block(block: Block[Tile]) -> Json:
    return {
        "version": block.version.decode(),
        "tiles": list(map(str, block.tiles)),
        "usable": [str(tile) for tiles in block.usable_tiles for tile in tiles],
    }


def key_of(text: str) -> BlockKey:
    return BlockKey(*map(int, text.split("/")))


def text_of(key: BlockKey) -> str:
    return "/".join(map(str, key))


class Traits:
    """How the cases' tiles are read."""

    def __init__(self) -> None:
        self.repacked: list[int] = []

    def id_of(self, tile: Tile) -> str:
        return tile.tile_uuid

    def cell_of(self, tile: Tile) -> tuple[int, int]:
        return tile.x, tile.y

    def order_of(self, tile: Tile) -> tuple[int, str]:
        return tile.rank, tile.tile_uuid

    def is_usable(self, tile: Tile) -> bool:
        return tile.usable

    def repack(self, tiles: Sequence[Tile]) -> Sequence[Tile]:
        self.repacked.append(len(tiles))
        return [Tile(*tile) for tile in tiles]
