"""`tilecache usage`, `evict`, `evictions` and `delete`."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.admin import evict, list_evictions, read_usage
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.terminal import answer_tilecache
from tests.tiles import NOW, ONBOARD, Block, bulk_insert, tile, tile_uuid
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey

Completed = subprocess.CompletedProcess[str]
NOBODY_TO_ASK = "there is no terminal to ask on; give --yes"


@pytest.fixture
def run(shared_daemon: DaemonProcess) -> Any:
    """Runs a command against the module's daemon, without a terminal."""

    def run(*arguments: object) -> Completed:
        return run_tilecache(*arguments, admin_socket_path=shared_daemon.admin_socket_path)

    return run


@pytest.fixture
def answer(shared_daemon: DaemonProcess) -> Any:
    """Runs a command against the module's daemon, with an answer typed on a terminal."""

    def answer(text: str, *arguments: object) -> Completed:
        return answer_tilecache(text, *arguments, admin_socket_path=shared_daemon.admin_socket_path)

    return answer


@pytest.fixture
def keys(admin: TileCacheClient, block: Block) -> list[TileKey]:
    """Ten tiles of 100 kB, the first the least recently used, and one that waits for upload."""
    keys = list(block.keys(10))
    tiles = [tile(key, disk_bytes=100_000) for key in keys]
    tiles.append(tile(block.key(0, 1, ONBOARD), disk_bytes=50_000))
    (answer,) = bulk_insert(admin, tiles)
    assert answer.inserted_count == 11
    return keys


@pytest.fixture
def root(keys: list[TileKey], tmp_path: Path) -> Path:
    """The tiles' files, and one beside their directory."""
    root = tmp_path / "tiles"
    for key in keys:
        path = root / tile(key).file_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("picture")
    (tmp_path / "precious").write_text("not a tile")
    return root


def json_lines(ended: Completed) -> tuple[list[Any], Any]:
    """The tiles and the summary."""
    *tiles, summary = map(json.loads, ended.stdout.splitlines())
    return [line["tile"] for line in tiles], summary["summary"]


def listed_paths(admin: TileCacheClient) -> list[str]:
    return [gone.file_path for gone in list_evictions(admin)]


def test_usage_of_an_empty_cache_says_what_to_do(admin: TileCacheClient, run: Any) -> None:
    shown = run("usage")

    assert shown.returncode == 0
    assert "nothing is stored" in shown.stdout
    assert "tilecache import" in shown.stdout


def test_usage_tells_at_a_glance(admin: TileCacheClient, keys: list[TileKey], run: Any) -> None:
    evict(admin, free_bytes=100_000)

    shown = run("usage")

    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    for name, told in (
        ("covered", "10 tiles in zoom 18"),
        ("full", "950.0 kB used; there is no ceiling"),
        ("stale", "nothing"),
        ("to upload", "1 tile (50.0 kB) waits"),
        ("to remove", "1 tile (100.0 kB) has gone, but not its file"),
        ("googlemaps", "900.0 kB"),
        ("onboard_ingest", "50.0 kB"),
        ("fresh", "950.0 kB"),
    ):
        assert any(line.startswith(name) and told in line for line in lines), (name, lines)


def test_usage_shows_the_ceiling_as_a_bar(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, max_used_bytes=100_000) as daemon:
        bulk_insert(daemon.client, [tile(block.key(), disk_bytes=75_000)])

        shown = run_tilecache("usage", admin_socket_path=daemon.admin_socket_path)

    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("full")]
    assert "━" in line
    assert "75% of the ceiling: 75.0 kB of 100.0 kB" in line
    assert "An insert that would pass the ceiling is refused." in shown.stdout


def test_usage_for_programs_has_every_number(
    admin: TileCacheClient, keys: list[TileKey], run: Any
) -> None:
    told = json.loads(run("usage", "--json").stdout)

    assert told["total"] == {"tile_count": "11", "used_bytes": "1050000"}
    assert told["pending_upload"] == {"tile_count": "1", "used_bytes": "50000"}
    assert told["pending_removal"] == {"tile_count": "0", "used_bytes": "0"}
    assert told["max_used_bytes"] == "0"


def test_evict_tells_what_went_and_what_is_left_to_do(
    admin: TileCacheClient, keys: list[TileKey], run: Any
) -> None:
    done = run("evict", "--free", "250kB", "--yes")

    assert done.returncode == 0, done.stderr
    assert "Evicted 3 tiles (300.0 kB); 750.0 kB are used now." in done.stdout
    for key in keys[:3]:
        assert tile(key).file_path in done.stdout
    assert "tilecache evictions remove" in done.stdout
    assert read_usage(admin).total.tile_count == 8


@pytest.mark.parametrize(
    ("size", "evicted"), [("500kB", 6), ("500000", 6), ("512KiB", 6), ("0.9 MB", 2), ("2GiB", 0)]
)
def test_sizes_are_written_as_people_do(
    admin: TileCacheClient, keys: list[TileKey], run: Any, size: str, evicted: int
) -> None:
    tried = run("evict", "--max-used", size, "--dry-run", "--json")

    tiles, summary = json_lines(tried)
    assert summary["evicted_count"] == str(len(tiles)) == str(evicted)


def test_a_dry_run_changes_nothing(admin: TileCacheClient, keys: list[TileKey], run: Any) -> None:
    tried = run("evict", "--max-used", "900kB", "--dry-run")

    assert tried.returncode == 0
    assert "Would evict 2 tiles (200.0 kB)" in tried.stdout
    assert "Nothing was changed" in tried.stdout
    assert read_usage(admin).total.tile_count == 11


def test_evict_says_in_words_why_no_more_could_go(
    admin: TileCacheClient, keys: list[TileKey], run: Any
) -> None:
    done = run("evict", "--max-used", "0", "--yes")

    assert done.returncode == 1
    assert "The goal is not met: what is left waits for upload" in done.stdout
    assert "1 tiles were passed over" in done.stdout

    rest = run("evict", "--max-used", "0", "--yes", "--include-pending-uploads")
    assert rest.returncode == 0
    assert "Evicted 1 tile (50.0 kB); 0 bytes are used now." in rest.stdout


def test_evict_asks_on_a_terminal(admin: TileCacheClient, keys: list[TileKey], answer: Any) -> None:
    refused = answer("n", "evict", "--free", "1MB")
    assert refused.returncode == 1
    assert "This evicts 10 tiles (1.0 MB). Go on?" in refused.stderr
    assert read_usage(admin).total.tile_count == 11

    agreed = answer("y", "evict", "--free", "1MB")
    assert agreed.returncode == 0
    assert read_usage(admin).total.tile_count == 1


@pytest.mark.parametrize(
    "command",
    [
        ("evict", "--free", "1"),
        ("delete", "--zoom", "18"),
        ("evictions", "remove", "--root", "/"),
        ("sectors", "delete", "front"),
    ],
)
def test_without_a_terminal_and_without_yes_nothing_is_removed(
    admin: TileCacheClient, keys: list[TileKey], run: Any, command: tuple[str, ...]
) -> None:
    refused = run(*command)

    assert refused.returncode == 2
    assert NOBODY_TO_ASK in refused.stderr
    assert read_usage(admin).total.tile_count == 11


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evict"], "one of --max-used and --free"),
        (["evict", "--free", "1", "--max-used", "2"], "one of --max-used and --free"),
        (["evict", "--free", "lots"], "'lots' is no size such as 500MB or 2GiB"),
        (["evict", "--free", "-5MB"], "is no size"),
        (["evict", "--free", "9999999999TB"], "more than there can be"),
        (["delete"], "Give ids, or at least one filter"),
        (["delete", "an-id", "--zoom", "3"], "and not both"),
        (["delete", "--bbox", "1,2,3"], "SOUTH,WEST,NORTH,EAST"),
        (["evictions", "confirm"], "Give ids, or --all-gone"),
        (["evictions", "confirm", "3", "--all-gone", "--root", "/"], "Give ids, or --all-gone"),
        (["evictions", "confirm", "--all-gone"], "Give ids, or --all-gone"),
        (["evictions", "remove", "--root", "/nowhere/at/all"], "--root"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_asked(arguments: list[str], told: str) -> None:
    ended = run_tilecache(*arguments, "--socket", "/nowhere/admin.sock")

    assert ended.returncode == 2
    assert told in " ".join(ended.stderr.replace("│", " ").split())


def test_without_a_daemon_the_socket_is_named(tmp_path: Path) -> None:
    ended = run_tilecache("usage", admin_socket_path=tmp_path / "admin.sock")

    assert ended.returncode == 3
    assert f"{tmp_path / 'admin.sock'}: there is no socket" in ended.stderr


def test_what_the_daemon_refuses_is_told_by_its_field(admin: TileCacheClient, run: Any) -> None:
    ended = run("evict", "--free", "0", "--yes")

    assert ended.returncode == 4
    assert "free_bytes: is 0" in ended.stderr


def test_the_list_is_for_people_and_for_programs(
    admin: TileCacheClient, keys: list[TileKey], run: Any
) -> None:
    went = evict(admin, free_bytes=200_000).tiles

    people, programs = run("evictions", "list"), run("evictions", "list", "--json")

    for line, gone in zip(people.stdout.splitlines(), went, strict=True):
        assert line.split()[0] == str(gone.eviction_id)
        assert gone.file_path in line
        assert "evicted" in line
    listed = [json.loads(line) for line in programs.stdout.splitlines()]
    assert [entry["file_path"] for entry in listed] == [gone.file_path for gone in went]


def test_the_list_is_walked_to_its_end(admin: TileCacheClient, block: Block, run: Any) -> None:
    keys = [block.key(i % 100, i // 100) for i in range(2_500)]
    bulk_insert(admin, [tile(key) for key in keys])
    evict(admin, max_used_bytes=0)

    assert len(run("evictions", "list", "--json").stdout.splitlines()) == 2_500


def test_evictions_are_confirmed_by_their_ids(
    admin: TileCacheClient, keys: list[TileKey], run: Any
) -> None:
    first, second = (gone.eviction_id for gone in evict(admin, free_bytes=200_000).tiles)

    done = run("evictions", "confirm", first)
    again = run("evictions", "confirm", first, second)

    assert (done.returncode, again.returncode) == (0, 1)
    assert f"{first}: is not on the list" in again.stderr
    assert listed_paths(admin) == []


def test_only_what_is_gone_is_confirmed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Any
) -> None:
    gone, there = (each.file_path for each in evict(admin, free_bytes=200_000).tiles)
    (root / gone).unlink()

    done = run("evictions", "confirm", "--all-gone", "--root", root)

    assert done.returncode == 1
    assert "Confirmed 1." in done.stdout
    assert f"{there}: is still there" in done.stderr
    assert listed_paths(admin) == [there]


def test_listed_files_are_removed_and_confirmed(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Any
) -> None:
    listed = [each.file_path for each in evict(admin, free_bytes=300_000).tiles]
    (root / listed[0]).unlink()  # missing already: gone

    tried = run("evictions", "remove", "--root", root, "--dry-run")
    assert tried.returncode == 0
    assert tried.stdout.splitlines()[:3] == [str(root / path) for path in listed]
    assert (root / listed[1]).exists()

    done = run("evictions", "remove", "--root", root, "--yes")
    assert done.returncode == 0, done.stderr
    assert "Removed and confirmed 3; 0 stay on the list." in done.stdout
    assert listed_paths(admin) == []
    left = {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}
    assert left == {tile(key).file_path for key in keys[3:]}


def test_removing_asks_on_a_terminal(
    admin: TileCacheClient, keys: list[TileKey], root: Path, answer: Any
) -> None:
    evict(admin, free_bytes=100_000)

    refused = answer("n", "evictions", "remove", "--root", root)
    assert refused.returncode == 1
    assert f"This removes 1 files (100.0 kB) below {root}. Go on?" in refused.stderr
    assert len(list(root.rglob("*.jpg"))) == 10

    agreed = answer("y", "evictions", "remove", "--root", root)
    assert agreed.returncode == 0
    assert len(list(root.rglob("*.jpg"))) == 9


def test_what_cannot_be_removed_stays_on_the_list(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Any
) -> None:
    stuck, removable = (each.file_path for each in evict(admin, free_bytes=200_000).tiles)
    (root / stuck).unlink()
    (root / stuck).mkdir()  # root may remove any file, but no directory

    done = run("evictions", "remove", "--root", root, "--yes")

    assert done.returncode == 1
    assert stuck in done.stderr
    assert "Removed and confirmed 1; 1 stay on the list." in done.stdout
    assert listed_paths(admin) == [stuck]
    assert not (root / removable).exists()


def test_nothing_outside_of_the_root_is_touched(
    admin: TileCacheClient, keys: list[TileKey], root: Path, run: Any, block: Block
) -> None:
    (root / "elsewhere").symlink_to(root.parent)
    (root / "link.jpg").symlink_to(root.parent / "precious")
    outside = tile(block.key(0, 2), disk_bytes=1, file_path="elsewhere/precious")
    link = tile(block.key(1, 2), disk_bytes=1, file_path="link.jpg")
    bulk_insert(admin, [outside, link])
    run("delete", tile_uuid(outside.key), tile_uuid(link.key), "--yes")

    done = run("evictions", "remove", "--root", root, "--yes")

    assert done.returncode == 1
    assert "elsewhere/precious: does not lie in" in done.stderr
    assert (root.parent / "precious").read_text() == "not a tile"
    assert not (root / "link.jpg").is_symlink()
    assert listed_paths(admin) == ["elsewhere/precious"]


def test_tiles_are_deleted_by_id(admin: TileCacheClient, keys: list[TileKey], run: Any) -> None:
    unknown = "00000000-0000-5000-8000-000000000000"

    done = run("delete", tile_uuid(keys[4]), unknown, "--yes")

    assert done.returncode == 1
    assert "Deleted 1 tile (100.0 kB)." in done.stdout
    assert f"{unknown}: there is no such tile" in done.stderr
    assert listed_paths(admin) == [tile(keys[4]).file_path]


@pytest.mark.parametrize(
    ("filters", "deleted", "exit_code"),
    [
        (["--zoom", "18", "--zoom", "17"], 10, 1),
        (["--zoom", "17"], 0, 0),
        (["--source", "googlemaps"], 10, 0),
        (["--source", "onboard_ingest"], 0, 1),
        (["--source", "onboard_ingest", "--include-pending-uploads"], 1, 0),
        (["--captured-before", f"{NOW:%Y-%m-%dT%H:%M:%S}"], 10, 1),
        (["--captured-before", "2020-01-01"], 0, 0),
        (["--flight", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"], 0, 0),
        (["--bbox", "-90,-180,90,180"], 10, 1),
        (["--circle", "0,90,1000"], 0, 0),
    ],
)
def test_tiles_are_deleted_by_what_they_have_in_common(
    admin: TileCacheClient,
    keys: list[TileKey],
    run: Any,
    filters: list[str],
    deleted: int,
    exit_code: int,
) -> None:
    tried = run("delete", *filters, "--dry-run", "--json")
    assert read_usage(admin).total.tile_count == 11
    done = run("delete", *filters, "--yes", "--json")

    told, summary = json_lines(done)
    assert (len(told), summary["deleted_count"]) == (deleted, str(deleted))
    assert (tried.returncode, done.returncode) == (exit_code, exit_code)
    assert [one["tile_uuid"] for one in json_lines(tried)[0]] == [one["tile_uuid"] for one in told]
    assert read_usage(admin).total.tile_count == 11 - deleted


def test_tiles_are_deleted_by_cells(
    admin: TileCacheClient, keys: list[TileKey], block: Block, run: Any
) -> None:
    cells = f"{block.x},{block.x + 3},{block.y},{block.y}"

    run("delete", "--cells", cells, "--zoom", "18", "--source", "googlemaps", "--yes")

    assert sorted(listed_paths(admin)) == sorted(tile(key).file_path for key in keys[:4])


def test_delete_says_what_stays_and_why(
    admin: TileCacheClient, keys: list[TileKey], run: Any
) -> None:
    done = run("delete", "--zoom", "18", "--yes")

    assert "Deleted 10 tiles (1.0 MB)." in done.stdout
    assert "1 tiles that match stay because they wait for upload" in done.stdout


def test_delete_asks_on_a_terminal(
    admin: TileCacheClient, keys: list[TileKey], answer: Any
) -> None:
    refused = answer("n", "delete", "--source", "googlemaps")
    assert refused.returncode == 1
    assert "This deletes 10 tiles (1.0 MB). Go on?" in refused.stderr
    assert read_usage(admin).total.tile_count == 11

    assert answer("y", "delete", "--source", "googlemaps").returncode == 0
    assert read_usage(admin).total.tile_count == 1
