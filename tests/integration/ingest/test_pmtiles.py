"""Legal archives are read; hostile, broken and unsupported ones are refused as a whole."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.imports.pictures import CELLS, cell_of
from tests.imports.pmtiles_archives import (
    HOSTILE,
    LEGAL,
    UNSUPPORTED,
    archive,
    directory,
    with_leaves,
)
from tests.stored_tiles import list_stored
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import FoundTile
from tilecache_daemon.ingest.sources import open_source

MAX_PEAK_BYTES = 256 * 1024 * 1024


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "tested.pmtiles"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_archive_is_imported(name: str, daemon: DaemonProcess, tmp_path: Path) -> None:
    path = write(tmp_path, LEGAL[name])
    run = run_tilecache("import", path, "--json", socket_path=daemon.socket_path)

    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["total_count"] == len(CELLS)
    stored = list_stored(daemon.client, range(8))
    assert {(tile.key.zoom, tile.key.x, tile.key.y) for tile in stored} == set(CELLS)
    for tile in stored:
        cell = tile.key.zoom, tile.key.x, tile.key.y
        assert cell_of((path.with_suffix("") / tile.file_path).read_bytes()) == cell


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    content, why = HOSTILE[name]
    path = write(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=why) as failure:
            open_source(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in str(failure.value)
    assert peak_bytes < MAX_PEAK_BYTES


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_named(name: str, tmp_path: Path) -> None:
    content, why = UNSUPPORTED[name]

    with pytest.raises(SourceError, match=why):
        open_source(write(tmp_path, content))


def test_nothing_of_a_hostile_archive_is_written(daemon: DaemonProcess, tmp_path: Path) -> None:
    path = write(tmp_path, HOSTILE["four-billion-tiles-in-a-run.pmtiles"][0])
    run = run_tilecache("import", path, socket_path=daemon.socket_path)

    assert run.returncode == 2
    assert "--max-zoom" in run.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_directories_of_other_zooms_are_not_read(tmp_path: Path) -> None:
    content = with_leaves(bounds="0,0,0,0")
    # The directory of the last leaf, at the end of the file, is damaged.
    path = write(tmp_path, content[:-4] + b"\x80" * 4)

    with pytest.raises(SourceError, match="damaged"):
        list(open_source(path))
    low = [tile for tile in open_source(path, range(7)) if isinstance(tile, FoundTile)]
    assert {(tile.zoom, tile.x, tile.y) for tile in low} == {cell for cell in CELLS if cell[0] < 7}


def test_a_tile_that_unpacks_to_gigabytes_is_refused_alone(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    bomb = gzip.compress(bytes(1 << 27))
    path = write(tmp_path, archive(directory((0, 1, len(bomb), 1)), bomb))
    run = run_tilecache("import", path, "--json", socket_path=daemon.socket_path)
    report = json.loads(run.stdout)

    assert (run.returncode, report["refused_count"]) == (1, 1)
    assert "unpacks to more than" in report["refused"][0]["message"]
