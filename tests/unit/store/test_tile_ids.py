"""Ids of tiles, many at once, are what the standard library makes of each."""

from hashlib import sha1
from uuid import NAMESPACE_URL, uuid5

from hypothesis import given
from hypothesis import strategies as st

from tilecache_daemon.store.tile_ids import uuid5_texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_many_uuids_are_those_of_the_standard_library(names: list[str]) -> None:
    digests = [sha1(NAMESPACE_URL.bytes + name.encode()).digest() for name in names]
    assert uuid5_texts(digests) == [str(uuid5(NAMESPACE_URL, name)) for name in names]
