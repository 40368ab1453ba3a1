"""Any bytes as a PMTiles archive: an error that names the file, or exactly the counted tiles."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.bad_bytes import EXAMPLES
from tests.imports.pmtiles_archives import HEADER_BYTES, archive, directory, plain, with_leaves
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import FoundTile, Refusal
from tilecache_daemon.ingest.sources import open_source

MAX_LISTED_TILES = 10_000
_NUMBER = st.integers(0, 10) | st.sampled_from([2**16, 2**32, 2**62, 2**63 - 1, 2**63, 2**70])
_ENTRIES = st.lists(st.tuples(_NUMBER, _NUMBER, _NUMBER, _NUMBER), min_size=1, max_size=5)


@st.composite
def mutated_archives(draw: st.DrawFn) -> bytes:
    """A legal archive of which some bytes are changed, removed or inserted."""
    content = bytearray(draw(st.sampled_from([plain(), with_leaves()])))
    for _ in range(draw(st.integers(1, 4))):
        # Most errors are found in the header and the directory behind it.
        start = draw(st.integers(0, HEADER_BYTES + 40) | st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        content[start:end] = draw(st.binary(max_size=8))
    return bytes(content)


@st.composite
def odd_directories(draw: st.DrawFn) -> bytes:
    """An archive whose directories have odd numbers."""
    root, leaf = (sorted(draw(_ENTRIES)) for _ in range(2))
    return archive(directory(*root), b"tile" * 4, directory(*leaf))


@pytest.mark.parametrize("strategy", [mutated_archives(), odd_directories(), st.binary()])
@settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_are_an_archive_or_an_error_that_names_the_file(
    strategy: st.SearchStrategy[bytes], tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "any.pmtiles"
    path.write_bytes(data.draw(strategy))
    try:
        source = open_source(path)
        listed = list(source) if source.count() <= MAX_LISTED_TILES else None
    except SourceError as error:
        failure = str(error)
    else:
        failure = f"{path}: none"
        assert listed is None or len(listed) == source.count()
        assert all(isinstance(found, FoundTile | Refusal) for found in listed or ())
    assert failure.startswith(f"{path}: ")
