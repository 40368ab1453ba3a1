"""`tilecache evictions`."""

import fcntl
import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tests.admin import confirm, delete, evict, list_evictions
from tests.integration.cli.conftest import Run
from tests.integration.cli.removals import listed_paths
from tests.tiles import Block, bulk_insert, insert, tile, tile_uuid
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache_daemon.cli.tile_files import TileFiles


@pytest.fixture
def root(keys: list[TileKey], tmp_path: Path) -> Path:
    """The directory of the tiles' files. Another file is beside it."""
    root = tmp_path / "tiles"
    for key in keys:
        path = root / tile(key).file_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("picture")
    (tmp_path / "precious").write_text("not a tile")
    return root


def test_the_list_is_text_or_json_lines(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    evicted = evict(admin, free_bytes=200_000).tiles

    text, json_lines = run("evictions", "list"), run("evictions", "list", "--json")

    for line, entry in zip(text.stdout.splitlines(), evicted, strict=True):
        assert line.split()[0] == str(entry.eviction_id)
        assert entry.file_path in line
        assert "evicted" in line
    listed = [json.loads(line) for line in json_lines.stdout.splitlines()]
    assert [line["file_path"] for line in listed] == [entry.file_path for entry in evicted]


def test_all_pages_are_listed(admin: TileCacheClient, block: Block, run: Run) -> None:
    keys = [block.key(i % 100, i // 100) for i in range(2_500)]
    bulk_insert(admin, [tile(key) for key in keys])
    evict(admin, max_used_bytes=0)

    assert len(run("evictions", "list", "--json").stdout.splitlines()) == 2_500


def test_evictions_are_confirmed_by_their_ids(
    admin: TileCacheClient, keys: list[TileKey], run: Run
) -> None:
    first, second = (entry.eviction_id for entry in evict(admin, free_bytes=200_000).tiles)

    done = run("evictions", "confirm", first)
    again = run("evictions", "confirm", first, second)

    assert (done.returncode, again.returncode) == (0, 1)
    assert f"{first}: not on the list" in again.stderr
    assert listed_paths(admin) == []


def test_only_missing_files_are_confirmed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    missing, existing = (each.file_path for each in evict(admin, free_bytes=200_000).tiles)
    (root / missing).unlink()

    done = run("evictions", "confirm", "--all-gone", "--root", root)

    assert done.returncode == 1
    assert "Confirmed 1 file." in done.stdout
    assert f"{existing}: still exists" in done.stderr
    assert listed_paths(admin) == [existing]


def test_listed_files_are_removed_and_confirmed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    listed = [each.file_path for each in evict(admin, free_bytes=300_000).tiles]

    dry_run = run("evictions", "remove", "--root", root, "--dry-run")
    assert dry_run.returncode == 0
    assert dry_run.stdout.splitlines()[:3] == [str(root / path) for path in listed]
    assert all((root / path).exists() for path in listed)

    done = run("evictions", "remove", "--root", root, "--yes")
    assert done.returncode == 0, done.stderr
    assert "Removed 3 files; 0 remain on the list." in done.stdout
    assert listed_paths(admin) == []
    remaining = {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}
    assert remaining == {tile(key).file_path for key in keys[3:]}


def test_what_is_not_found_is_told_apart_from_what_is_removed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    gone, there = (each.file_path for each in evict(admin, free_bytes=200_000).tiles)
    (root / gone).unlink()
    nowhere = tile(Block().key(), disk_bytes=1, file_path="19/1/1.jpg")
    insert(admin, nowhere)
    delete(admin, tile_uuids=[tile_uuid(nowhere.key)])

    dry_run = run("evictions", "remove", "--root", root, "--dry-run")
    done = run("evictions", "remove", "--root", root, "--yes")

    assert (dry_run.returncode, done.returncode) == (1, 1)
    assert dry_run.stdout.splitlines()[0] == str(root / there)
    for ended in (dry_run, done):
        assert f"{gone}: not found" in ended.stderr
        assert "19/1/1.jpg: not found" in ended.stderr
    assert "Removed 1 file; 2 not found; 0 remain on the list." in done.stdout
    assert listed_paths(admin) == []


def test_remove_asks_for_confirmation_on_a_terminal(
    admin: TileCacheClient, keys: list[TileKey], root: Path, answer: Run
) -> None:
    evict(admin, free_bytes=100_000)

    declined = answer("n", "evictions", "remove", "--root", root)
    assert declined.returncode == 1
    assert f"This removes 1 file (100.0 kB) below {root}. Continue?" in declined.stderr
    assert len(list(root.rglob("*.jpg"))) == 10

    agreed = answer("y", "evictions", "remove", "--root", root)
    assert agreed.returncode == 0
    assert len(list(root.rglob("*.jpg"))) == 9


def test_a_file_that_cannot_be_removed_stays_on_the_list(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    stuck, removable = (each.file_path for each in evict(admin, free_bytes=200_000).tiles)
    (root / stuck).unlink()
    (root / stuck).mkdir()  # root may remove any file, but no directory

    done = run("evictions", "remove", "--root", root, "--yes")

    assert done.returncode == 1
    assert stuck in done.stderr
    assert "Removed 1 file; 1 remain on the list." in done.stdout
    assert listed_paths(admin) == [stuck]
    assert not (root / removable).exists()


def test_nothing_outside_the_root_is_removed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run, block: Block
) -> None:
    (root / "elsewhere").symlink_to(root.parent)
    (root / "link.jpg").symlink_to(root.parent / "precious")
    outside = tile(block.key(0, 2), disk_bytes=1, file_path="elsewhere/precious")
    link = tile(block.key(1, 2), disk_bytes=1, file_path="link.jpg")
    bulk_insert(admin, [outside, link])
    run("delete", tile_uuid(outside.key), tile_uuid(link.key), "--yes")

    done = run("evictions", "remove", "--root", root, "--yes")

    assert done.returncode == 1
    assert "elsewhere/precious: outside" in done.stderr
    assert (root.parent / "precious").read_text() == "not a tile"
    assert not (root / "link.jpg").is_symlink()
    assert listed_paths(admin) == ["elsewhere/precious"]


REMOVE = ("remove", "--yes")
CONFIRM = ("confirm", "--all-gone")


@pytest.mark.parametrize("command", [REMOVE, CONFIRM])
def test_an_empty_mount_point_confirms_nothing(
    admin: TileCacheClient, keys: list[TileKey], tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    listed = [each.file_path for each in evict(admin, max_used_bytes=0).tiles]
    (tmp_path / "card").mkdir()

    refused = run("evictions", *command, "--root", tmp_path / "card")

    assert refused.returncode == 2
    assert "is empty: is its file system mounted?" in refused.stderr
    assert listed_paths(admin) == listed


@pytest.mark.parametrize("command", [REMOVE, CONFIRM])
def test_a_directory_without_any_stored_file_is_refused(
    admin: TileCacheClient, keys: list[TileKey], tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    listed = [each.file_path for each in evict(admin, free_bytes=200_000).tiles]
    (tmp_path / "other").write_text("not a tile")

    refused = run("evictions", *command, "--root", tmp_path)

    assert refused.returncode == 2
    assert "has none of the files of 9 stored tiles" in refused.stderr
    assert listed_paths(admin) == listed


def test_a_missing_file_below_an_empty_directory_stays_on_the_list(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run, block: Block
) -> None:
    (root / "card").mkdir()
    lost = tile(block.key(0, 2), file_path="card/18/1/1.jpg")
    bulk_insert(admin, [lost])
    run("delete", tile_uuid(lost.key), "--yes")

    done = run("evictions", "remove", "--root", root, "--yes")

    assert done.returncode == 1
    assert f"card/18/1/1.jpg: {root / 'card'} is empty" in done.stderr
    assert listed_paths(admin) == ["card/18/1/1.jpg"]


def test_only_one_process_removes_files_below_a_root(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    listed = [each.file_path for each in evict(admin, free_bytes=200_000).tiles]
    other = os.open(root, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    refused = run("evictions", "remove", "--root", root, "--yes")
    os.close(other)

    assert refused.returncode == 2
    assert "another process removes or unpacks files there" in refused.stderr
    assert listed_paths(admin) == listed
    assert run("evictions", "remove", "--root", root, "--yes").returncode == 0


def test_a_directory_that_was_replaced_by_a_link_is_not_followed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    (listed,) = (each.file_path for each in evict(admin, free_bytes=100_000).tiles)
    parent = (root / listed).parent
    elsewhere = Path(shutil.move(parent, root.parent / "elsewhere"))
    parent.symlink_to(elsewhere)

    done = run("evictions", "remove", "--root", root, "--yes")

    assert done.returncode == 1
    assert f"outside {root}: {parent.name} is a symbolic link" in done.stderr
    assert (elsewhere / parent.name).with_name(Path(listed).name).exists()
    assert listed_paths(admin) == [listed]


@pytest.mark.parametrize("stored", ["before it is set aside", "after it is set aside"])
def test_a_file_that_is_confirmed_and_stored_again_meanwhile_is_kept(
    admin: TileCacheClient, keys: list[TileKey], root: Path, stored: str
) -> None:
    evict(admin, free_bytes=200_000)
    again, gone = list_evictions(admin)
    path = root / again.file_path

    def store_again() -> None:
        assert all(confirm(admin, [again.eviction_id]))
        path.write_text("the next picture")
        insert(admin, tile(again.key))

    def find_listed() -> list[int]:
        if stored == "after it is set aside" and not path.exists():
            store_again()
        return [entry.eviction_id for entry in list_evictions(admin)]

    if stored == "before it is set aside":
        store_again()
    paths = {entry.eviction_id: entry.file_path for entry in (again, gone)}
    with closing(TileFiles(root)) as files:
        removal = files.remove(paths, find_listed)
        assert (removal.problems, gone.eviction_id in removal.not_found) == ({}, False)

    assert path.read_text() == "the next picture"
    assert not (root / gone.file_path).exists()
    assert not list(root.rglob(".removed*"))


def test_files_are_put_back_if_the_list_cannot_be_read(
    admin: TileCacheClient, keys: list[TileKey], root: Path
) -> None:
    evict(admin, free_bytes=200_000)
    paths = {entry.eviction_id: entry.file_path for entry in list_evictions(admin)}

    def find_listed() -> list[int]:
        raise CallError(grpc.StatusCode.UNAVAILABLE, "no daemon")

    with closing(TileFiles(root)) as files, pytest.raises(CallError, match="no daemon"):
        files.remove(paths, find_listed)

    assert all((root / path).exists() for path in paths.values())
    assert not list(root.rglob(".removed*"))


def test_a_removal_that_was_killed_is_completed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Run
) -> None:
    evict(admin, free_bytes=100_000)
    (listed,) = list_evictions(admin)
    path = root / listed.file_path
    path.rename(path.with_name(f".removed-{listed.eviction_id}"))

    done = run("evictions", "remove", "--root", root, "--yes")

    assert "Removed 1 file; 0 remain on the list." in done.stdout
    assert not list(root.rglob(".removed*"))
