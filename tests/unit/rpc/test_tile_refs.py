"""References of a request become ids; a bad one is named by its index."""

import pytest

from tests.tiles import by_key, tile_key, tile_uuid
from tilecache.v1.tile_metadata_store_pb2 import TileRef
from tilecache_daemon.errors import InvalidRequestError, LimitExceededError
from tilecache_daemon.rpc import requests

KEYS = [tile_key(18, x, 2) for x in range(5)]
IDS = [tile_uuid(key) for key in KEYS]
REFS = [TileRef(tile_uuid=tile_id) for tile_id in IDS]


def test_references_by_id_by_key_and_mixed_give_the_same_ids() -> None:
    by_keys = [by_key(key) for key in KEYS]
    for refs in (REFS, by_keys, REFS[:2] + by_keys[2:], by_keys[:2] + REFS[2:]):
        assert requests.tile_refs(refs, 5) == IDS


@pytest.mark.parametrize(
    "bad",
    [
        IDS[0].upper(),
        f"{{{IDS[0]}}}",
        IDS[0].replace("-", ""),
        f"{IDS[0]}\n{IDS[1]}",
        f"{IDS[0]}\n",
        f" {IDS[0][1:]}",
        IDS[0].replace("-", "\n"),
        "x",
    ],
)
@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_text_that_is_no_canonical_id_is_named_by_its_index(bad: str, index: int) -> None:
    refs = list(REFS)
    refs[index] = TileRef(tile_uuid=bad)
    with pytest.raises(InvalidRequestError) as caught:
        requests.tile_refs(refs, 5)
    assert [violation.field for violation in caught.value.violations] == [
        f"tiles[{index}].tile_uuid"
    ]


def test_texts_that_are_ids_only_together_are_refused() -> None:
    first, rest = IDS[0][:20], IDS[0][20:]
    with pytest.raises(InvalidRequestError):
        requests.tile_refs([TileRef(tile_uuid=first), TileRef(tile_uuid=rest)], 5)


def test_no_reference_and_too_many_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="tiles"):
        requests.tile_refs([], 5)
    with pytest.raises(LimitExceededError, match="tiles"):
        requests.tile_refs(REFS, 4)
