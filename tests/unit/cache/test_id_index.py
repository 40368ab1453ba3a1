"""Many ids at once, in little memory."""

import random
from uuid import UUID

import numpy as np
import pytest

from tilecache_daemon.cache.id_index import NOWHERE, IdIndex, Spans
from tilecache_daemon.store.tile_ids import Numbers, TileIds

CHANCE = random.Random(7)
Span = tuple[int, int, int]


def some_ids(count: int) -> list[str]:
    return [str(UUID(int=CHANCE.getrandbits(128))) for _ in range(count)]


def spans_of(held: list[Span]) -> Spans:
    return Spans(*(np.array(column, dtype=np.uint64) for column in zip(*held, strict=True)))


def parse_ids(ids: list[str]) -> Numbers:
    return TileIds.of(ids).numbers


def found(index: IdIndex, ids: list[str]) -> list[Span | None]:
    return [
        span if span[0] != NOWHERE else None
        for span in zip(*(column.tolist() for column in index.find(parse_ids(ids))), strict=True)
    ]


@pytest.mark.parametrize("finish_growing", [True, False])
def test_an_index_gives_what_was_put_last_and_not_discarded(finish_growing: bool) -> None:
    index, held = IdIndex(), dict[str, Span]()
    for holder in range(1, 80):
        known = CHANCE.sample(sorted(held), min(len(held), 50))
        ids = list(dict.fromkeys(known + some_ids(CHANCE.randrange(1, 400))))
        spans = [(holder, 10 * place, 10 * place + 9) for place in range(len(ids))]
        index.put(parse_ids(ids), spans_of(spans))
        held.update(zip(ids, spans, strict=True))
        if holder % 3 == 0:
            gone = CHANCE.randrange(1, holder)
            ids = [tile_uuid for tile_uuid, span in held.items() if span[0] == gone]
            # Others of these ids are held by others by now, and stay.
            index.discard(parse_ids(ids + known), gone)
            for tile_uuid in ids:
                del held[tile_uuid]
        while finish_growing and index.growing:
            index.grow()
        if not finish_growing and index.growing:
            index.grow()
        absent = some_ids(20)
        assert found(index, [*held, *absent]) == [*held.values(), *[None] * len(absent)]
    for tile_uuid in CHANCE.sample(sorted(held), 300):
        assert index.find_one(tile_uuid) == held[tile_uuid]
    assert index.find_one(some_ids(1)[0]) is None


def test_growing_ends() -> None:
    index, ids = IdIndex(), some_ids(5_000)
    spans = [(1, place, place + 1) for place in range(len(ids))]
    index.put(parse_ids(ids), spans_of(spans))
    while index.growing:
        index.grow()
    assert found(index, ids) == spans


def test_ids_that_begin_alike_are_not_taken_for_each_other() -> None:
    index = IdIndex()
    one, other, third = (f"00000000-0000-5000-8000-00000000000{digit}" for digit in (1, 2, 3))
    index.put(parse_ids([one]), spans_of([(1, 0, 5)]))
    assert found(index, [one, other]) == [(1, 0, 5), None]
    index.put(parse_ids([other]), spans_of([(2, 0, 5)]))
    assert found(index, [one, other, third]) == [None, (2, 0, 5), None]
    assert index.find_one(other) == (2, 0, 5)
    assert index.find_one(third) is None
