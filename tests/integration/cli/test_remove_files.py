"""`--remove-files` of `evict` and `delete`: both steps of a removal."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin import delete, read_usage
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.integration.cli.conftest import Run
from tests.integration.cli.removals import listed_paths, split_json_lines
from tests.tiles import Block, bulk_insert, tile, tile_key, tile_uuid
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey

STEPS = {"evict": "evicts", "delete": "deletes"}


@pytest.fixture
def root(keys: list[TileKey], tmp_path: Path) -> Path:
    """The directory of the tiles' files."""
    root = tmp_path / "tiles"
    for key in keys:
        path = root / tile(key).file_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("picture")
    return root


@pytest.fixture(params=["evict", "delete"])
def command(request: pytest.FixtureRequest, keys: list[TileKey]) -> tuple[str, ...]:
    """A command that takes out the first three tiles."""
    if request.param == "evict":
        return ("evict", "--free", "300kB")
    return ("delete", *map(tile_uuid, keys[:3]))


def images(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}


def test_rows_and_files_are_removed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run, command: tuple[str, ...]
) -> None:
    dry_run = run(*command, "--remove-files", "--root", root, "--dry-run")
    assert dry_run.returncode == 0, dry_run.stderr
    assert f"Would remove their files below {root}." in dry_run.stdout
    assert len(images(root)) == 10

    done = run(*command, "--remove-files", "--root", root, "--yes")

    assert done.returncode == 0, done.stderr
    assert "Removed 3 files; 0 remain on the list." in done.stdout
    assert "still exist" not in done.stdout
    assert images(root) == {tile(key).file_path for key in keys[3:]}
    assert listed_paths(admin) == []


def test_what_was_listed_before_is_removed_too(
    admin: TileCacheClient,
    keys: list[TileKey],
    root: Path,
    answer: Run,
    command: tuple[str, ...],
) -> None:
    delete(admin, tile_uuids=[tile_uuid(keys[9])])
    wanted = (*command, "--remove-files", "--root", root)

    declined = answer("n", *wanted)
    assert declined.returncode == 1
    assert (
        f"This {STEPS[command[0]]} 3 tiles (300.0 kB) and removes their files and 1 file "
        f"(100.0 kB) that are listed already below {root}. Continue?"
    ) in declined.stderr
    assert (len(images(root)), read_usage(admin).total.tile_count) == (10, 10)

    agreed = answer("y", *wanted)
    assert agreed.returncode == 0
    assert images(root) == {tile(key).file_path for key in keys[3:9]}
    assert listed_paths(admin) == []


def test_files_that_are_not_found_or_cannot_be_removed_are_told_apart(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run, command: tuple[str, ...]
) -> None:
    gone, stuck = (tile(key).file_path for key in keys[:2])
    (root / gone).unlink()
    (root / stuck).unlink()
    (root / stuck).mkdir()  # root may remove any file, but no directory

    dry_run = run(*command, "--remove-files", "--root", root, "--dry-run")
    done = run(*command, "--remove-files", "--root", root, "--yes", "--json")

    assert (dry_run.returncode, done.returncode) == (1, 1)
    assert "Not found: 1." in dry_run.stdout
    assert f"{gone}: not found" in dry_run.stderr
    assert f"{gone}: not found" in done.stderr
    assert f"{stuck}: " in done.stderr
    tiles, summary = split_json_lines(done)
    assert len(tiles) == 3
    counts = ("removed_file_count", "not_found_file_count", "remaining_file_count")
    assert [summary[name] for name in counts] == [1, 1, 1]
    assert listed_paths(admin) == [stuck]


def test_a_wrong_root_is_refused_before_a_row_is_deleted(
    admin: TileCacheClient, keys: list[TileKey], tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    (tmp_path / "other").mkdir()
    empty = run(*command, "--remove-files", "--root", tmp_path / "other", "--yes")
    (tmp_path / "other" / "file").write_text("not a tile")
    other = run(*command, "--remove-files", "--root", tmp_path / "other", "--yes")

    assert (empty.returncode, other.returncode) == (2, 2)
    assert "is empty: is its file system mounted?" in empty.stderr
    assert "has none of the files of 11 stored tiles" in other.stderr
    assert read_usage(admin).total.tile_count == 11


def test_without_it_the_files_stay_and_the_summary_has_no_counts(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run, command: tuple[str, ...]
) -> None:
    done = run(*command, "--yes", "--json")

    _, summary = split_json_lines(done)
    assert (done.returncode, summary["removed_file_count"]) == (0, None)
    assert len(images(root)) == 10


def test_a_root_without_it_is_a_mistake(root: Path, command: tuple[str, ...]) -> None:
    refused = run_tilecache(*command, "--root", root, "--socket", "/nowhere/admin.sock")

    assert refused.returncode == 2
    assert "--root is only for --remove-files" in refused.stderr


@pytest.fixture
def own_root(short_directory: Path, database: str, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon with a tiles directory that holds a tile's file."""
    tiles = tmp_path / "own"
    (tiles / "18/1").mkdir(parents=True)
    (tiles / "18/1/1.jpg").write_text("picture")
    with DaemonProcess(short_directory, dsn=database, tiles_directory=tiles) as daemon:
        bulk_insert(daemon.client, [tile(tile_key(18, 1, 1)), tile(Block().key())])
        yield daemon


def test_the_root_is_by_default_the_daemons_tiles_directory(
    own_root: DaemonProcess, tmp_path: Path
) -> None:
    done = run_tilecache(
        *("delete", tile_uuid(tile_key(18, 1, 1)), "--remove-files", "--yes"),
        admin_socket_path=own_root.admin_socket_path,
    )

    assert done.returncode == 0, done.stderr
    assert images(tmp_path / "own") == set()


def test_another_root_than_the_daemons_is_noted(own_root: DaemonProcess, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tmp_path / "own", tmp_path / "copy"))

    tried = run_tilecache(
        *("delete", tile_uuid(tile_key(18, 1, 1)), "--remove-files", "--root", copy, "--dry-run"),
        admin_socket_path=own_root.admin_socket_path,
    )

    assert tried.returncode == 0
    note = f"{copy} is not the daemon's tiles directory ({tmp_path / 'own'})"
    assert note in " ".join(tried.stderr.split())


def test_without_a_tiles_directory_a_root_is_asked_for(
    admin: TileCacheClient, keys: list[TileKey], run: Run, command: tuple[str, ...]
) -> None:
    refused = run(*command, "--remove-files", "--yes")

    assert refused.returncode == 2
    assert "Give --root DIR" in refused.stderr
    assert read_usage(admin).total.tile_count == 11
