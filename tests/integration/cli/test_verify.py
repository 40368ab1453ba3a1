"""`tilecache verify`."""

import json
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import delete, list_evictions, set_pin
from tests.daemon_process import TILECACHE, DaemonProcess, daemon_environment, run_tilecache
from tests.integration.cli.conftest import Run
from tests.tiles import (
    NOW,
    ONBOARD,
    Block,
    bulk_insert,
    cell_region,
    insert,
    is_stored,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_uuid,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    MarkUploadedRequest,
    TileMetadata,
    UploadedTile,
)
from tilecache_daemon.cli.tile_files import TileFiles

CONTENT = "picture"
AT_ONCE = ("--orphan-age", "0h")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the progress of verifications is kept."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state" / "verify"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tiles"
    root.mkdir()
    return root


@pytest.fixture
def stored(admin: TileCacheClient, root: Path, block: Block) -> list[TileMetadata]:
    """Twenty tiles with their files."""
    tiles = [good_tile(key) for key in block.keys(20)]
    bulk_insert(admin, tiles)
    for each in tiles:
        put(root, each.file_path)
    return tiles


def good_tile(key: TileKey, content: str = CONTENT, **fields: Any) -> TileMetadata:
    return tile(key, content, disk_bytes=len(content), **fields)


def put(root: Path, file_path: str, content: str = CONTENT) -> Path:
    path = root / file_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def findings(ran: "subprocess.CompletedProcess[str]") -> list[tuple[str, str]]:
    """The problem and the path of each finding of a run with --json."""
    return sorted((line["problem"], line["file_path"]) for line in json_lines(ran)[:-1])


def json_lines(ran: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines, ran.stderr
    assert [line["kind"] for line in lines] == ["file"] * (len(lines) - 1) + ["summary"]
    return lines


def test_nothing_is_wrong(stored: list[TileMetadata], root: Path, run: Run, state: Path) -> None:
    put(root, "README.md")
    put(root, ".thumbnails/1.png")

    ran = run("verify", "--hash", "--root", root)

    assert (ran.returncode, ran.stdout) == (0, "")
    assert f"Compared 20 tiles and 21 files below {root}: nothing is wrong." in ran.stderr
    assert list(state.iterdir()) == [], "there is nothing to continue"


def test_each_problem_is_one_line(stored: list[TileMetadata], root: Path, run: Run) -> None:
    gone, longer, other = (each.file_path for each in stored[:3])
    (root / gone).unlink()
    put(root, longer, CONTENT + "!")
    put(root, other, CONTENT.upper())
    put(root, "new/Picture.PNG")
    expected = {"missing": gone, "wrong_size": longer, "orphan": "new/Picture.PNG"}

    ran = run("verify", "--root", root, "--json")
    hashed = run("verify", "--root", root, "--json", "--hash")
    text = run("verify", "--root", root, "--hash")

    assert (ran.returncode, hashed.returncode, text.returncode) == (1, 1, 1)
    assert findings(ran) == sorted(expected.items())
    expected["wrong_content"] = other
    assert findings(hashed) == sorted(expected.items())
    lines = {line["problem"]: line for line in json_lines(hashed)[:-1]}
    assert len({tuple(line) for line in lines.values()}) == 1, "every line has every field"
    assert lines["missing"]["tile_uuid"] == tile_uuid(stored[0].key)
    assert lines["wrong_size"]["found_bytes"] == lines["wrong_size"]["disk_bytes"] + 1
    assert lines["wrong_content"]["found_sha256"] == sha256(CONTENT.upper())
    assert lines["wrong_content"]["content_sha256"] == sha256(CONTENT)
    assert lines["orphan"]["recent"] is True
    assert 0 <= lines["orphan"]["age_s"] < 3_600
    summary = json_lines(hashed)[-1]
    assert (summary["tile_count"], summary["file_count"], summary["left_count"]) == (20, 20, 4)
    printed = {line[:14].strip().replace(" ", "_"): line for line in text.stdout.splitlines()}
    assert {
        problem: expected[problem] in line for problem, line in printed.items()
    } == dict.fromkeys(expected, True)


def test_the_root_is_by_default_the_daemons_tiles_directory(
    tmp_path: Path, database: str, block: Block
) -> None:
    directory = tmp_path / "pictures"
    put(directory, "orphan.png")
    daemon = DaemonProcess(tmp_path, dsn=database, tiles_directory=directory)
    try:
        daemon.start()
        ran = run_tilecache("verify", "--json", admin_socket_path=daemon.admin_socket_path)
    finally:
        daemon.stop()
    assert findings(ran) == [("orphan", "orphan.png")]


def test_without_a_tiles_directory_a_root_is_needed(
    admin: TileCacheClient, tmp_path: Path, run: Run
) -> None:
    ran = run("verify")
    assert ran.returncode == 2
    assert "--root" in ran.stderr
    assert run("verify", "--root", tmp_path / "nothing").returncode == 2


def test_a_file_on_the_removal_list_belongs_to_it(
    admin: TileCacheClient, stored: list[TileMetadata], root: Path, run: Run
) -> None:
    delete(admin, tile_uuids=[tile_uuid(stored[0].key)])

    assert run("verify", "--root", root).returncode == 0


def test_repair_deletes_rows_whose_file_is_gone_or_damaged(
    admin: TileCacheClient, stored: list[TileMetadata], root: Path, run: Run
) -> None:
    gone, damaged = stored[0], stored[1]
    (root / gone.file_path).unlink()
    put(root, damaged.file_path, CONTENT.upper())
    options = ("verify", "--hash", "--repair", "--root", root)
    set_pin(admin, "flight", cell_region(gone.key.x, gone.key.x, gone.key.y, gone.key.y), [18])

    dry_run = run(*options, "--dry-run", "--json")
    assert dry_run.returncode == 1
    assert json_lines(dry_run)[-1]["deleted_count"] == 2
    assert is_stored(admin, gone.key)
    assert run(*options).returncode == 2, "there is nobody to ask"

    ran = run(*options, "--yes")

    assert ran.returncode == 0, "nothing is wrong any more"
    assert "Deleted 2 rows and removed 0 orphans." in ran.stderr
    assert "1 damaged file on the removal list" in ran.stderr
    assert [is_stored(admin, each.key) for each in stored[:3]] == [False, False, True]
    assert [each.file_path for each in list_evictions(admin)] == [damaged.file_path]
    assert run("verify", "--hash", "--root", root).returncode == 0


def test_rows_that_wait_for_upload_are_kept_unless_told(
    admin: TileCacheClient, stored: list[TileMetadata], root: Path, block: Block, run: Run
) -> None:
    flight_id = random_flight()
    waiting = good_tile(block.key(30, 0, ONBOARD, flight_id), file_path="flown/1.png")
    uploaded = good_tile(block.key(31, 0, ONBOARD, flight_id), file_path="flown/2.png")
    bulk_insert(admin, [waiting, uploaded])
    mark = UploadedTile(tile_uuid=tile_uuid(uploaded.key), content_sha256=uploaded.content_sha256)
    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[mark]), timeout=5)
    options = ("verify", "--repair", "--yes", "--root", root)

    kept = run(*options)
    assert kept.returncode == 1
    assert "Kept 1 row pending upload" in kept.stderr
    assert [is_stored(admin, each.key) for each in (waiting, uploaded)] == [True, False]

    told = run(*options, "--include-pending-uploads")
    assert told.returncode == 0
    assert not is_stored(admin, waiting.key)


def test_orphans_are_removed_but_recent_ones_are_only_named(
    stored: list[TileMetadata], root: Path, run: Run
) -> None:
    orphan, text = put(root, "18/old.webp"), put(root, "18/notes.txt")
    os.utime(orphan, (0, 0))  # as of a copy that keeps the time of its original
    options = ("verify", "--remove-orphans", "--root", root)

    recent = run(*options, "--yes")
    assert recent.returncode == 1
    assert "recent: 0 min" in recent.stdout
    assert orphan.exists()

    dry_run = run(*options, *AT_ONCE, "--dry-run")
    assert dry_run.returncode == 1
    assert "Would delete 0 rows and remove 1 orphan. Nothing was changed." in dry_run.stderr
    assert orphan.exists()

    done = run(*options, *AT_ONCE, "--yes")
    assert done.returncode == 0, done.stderr
    assert (orphan.exists(), text.exists()) == (False, True)
    assert all((root / each.file_path).exists() for each in stored)


def test_a_terminal_is_asked(
    admin: TileCacheClient, stored: list[TileMetadata], root: Path, answer: Run
) -> None:
    (root / stored[0].file_path).unlink()
    orphan = put(root, "orphan.png")
    options = ("verify", "--repair", "--remove-orphans", *AT_ONCE, "--root", root)

    declined = answer("n", *options)
    assert declined.returncode == 1
    assert f"About to delete 1 row and remove 1 orphan below {root}. Continue?" in declined.stderr
    assert is_stored(admin, stored[0].key)
    assert orphan.exists()

    assert answer("y", *options).returncode == 0
    assert not is_stored(admin, stored[0].key)
    assert not orphan.exists()


@pytest.mark.parametrize("action", ["--repair", "--remove-orphans"])
def test_a_root_without_a_tenth_of_the_files_is_refused_unless_told(
    admin: TileCacheClient, stored: list[TileMetadata], root: Path, action: str, run: Run
) -> None:
    for each in stored[:3]:
        (root / each.file_path).unlink()
    orphan = put(root, "orphan.png")
    options = ("verify", action, *AT_ONCE, "--root", root, "--yes")

    assert run(*options, "--dry-run").returncode == 2, "a dry run answers what the run would"
    refused = run(*options)
    assert refused.returncode == 2
    assert f"3 of 20 tiles have no file below {root}" in refused.stderr
    assert "Nothing was changed" in refused.stderr
    assert orphan.exists()
    assert is_stored(admin, stored[0].key)

    assert run(*options, "--trust-root").returncode == 1, "the other problem is left"
    assert orphan.exists() is (action == "--repair")
    assert is_stored(admin, stored[0].key) is (action == "--remove-orphans")


def test_a_tenth_of_the_files_is_no_reason_to_refuse(
    stored: list[TileMetadata], root: Path, run: Run
) -> None:
    for each in stored[:2]:
        (root / each.file_path).unlink()

    assert run("verify", "--repair", "--root", root, "--yes").returncode == 0


@pytest.mark.parametrize("action", ["--repair", "--remove-orphans"])
def test_an_empty_database_is_refused_unless_told(
    admin: TileCacheClient, root: Path, action: str, run: Run
) -> None:
    orphan = put(root, "orphan.png")
    options = ("verify", action, *AT_ONCE, "--root", root, "--yes")

    refused = run(*options)
    assert refused.returncode == 2
    assert "the database has no tiles" in refused.stderr
    assert orphan.exists()

    run(*options, "--trust-root")
    assert orphan.exists() is (action == "--repair")


def test_names_that_are_not_utf8_are_printed_with_escapes_and_removed(
    stored: list[TileMetadata], root: Path, run: Run
) -> None:
    name = Path(os.fsdecode(os.fsencode(root) + b"/18/caf\xe9\n.png"))
    name.touch()

    named = run("verify", "--root", root, "--json")
    assert findings(named) == [("orphan", "18/caf\\xe9\\x0a.png")]
    assert len(run("verify", "--root", root).stdout.splitlines()) == 1

    removed = run("verify", "--remove-orphans", *AT_ONCE, "--root", root, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert not name.exists()


def test_what_a_link_leads_to_belongs_to_the_tile_that_names_the_link(
    admin: TileCacheClient,
    stored: list[TileMetadata],
    root: Path,
    tmp_path: Path,
    block: Block,
    run: Run,
) -> None:
    inside, outside = put(root, "disk/a.png"), put(tmp_path / "card", "b.png", "other")
    precious = put(tmp_path / "card", "precious.png")
    (root / "linked").symlink_to("disk")
    (root / "card").symlink_to(tmp_path / "card")
    (root / "c.png").symlink_to(inside)
    names = ("linked/a.png", "card/b.png", "c.png", "card/gone.png")
    tiles = [good_tile(block.key(30 + i), file_path=name) for i, name in enumerate(names)]
    bulk_insert(admin, tiles)

    ran = run("verify", "--root", root, "--json", "--hash", "--remove-orphans", *AT_ONCE, "--yes")

    assert findings(ran) == [("missing", "card/gone.png"), ("wrong_size", "card/b.png")]
    assert inside.exists()
    assert outside.exists()
    assert precious.exists()


def test_rows_and_directories_that_cannot_be_checked_are_named_and_left(
    admin: TileCacheClient,
    sql: psycopg.Connection[Any],
    stored: list[TileMetadata],
    root: Path,
    block: Block,
    run: Run,
) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "directory.png").mkdir()
    names = ("pipe.png", "loop.png", "directory.png", "../outside.png", "/etc/hosts")
    for number, name in enumerate(names):
        store_row(sql, block.key(30 + number), file_path=name)

    options = ("--json", "--repair", "--remove-orphans", *AT_ONCE, "--yes", "--trust-root")
    for more in ([], ["--hash"]):
        ran = run("verify", "--root", root, *options, *more)
        assert findings(ran) == sorted(("unreadable", name) for name in names)
        assert ran.returncode == 1
    assert all(is_stored(admin, block.key(30 + number)) for number in range(len(names)))


def test_without_permission_nothing_is_repaired(
    admin: TileCacheClient, stored: list[TileMetadata], root: Path, run: Run
) -> None:
    # Root is refused like others without these capabilities.
    as_others: tuple[str, ...] = ()
    if os.geteuid() == 0:
        as_others = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        if not shutil.which("setpriv"):
            pytest.skip("root may read everything, and there is no setpriv")
    closed = (root / stored[0].file_path).parent
    closed.chmod(0)
    try:
        ran = run(
            *("verify", "--repair", "--root", root, "--json", "--yes", "--trust-root"),
            prefix=as_others,
        )
    finally:
        closed.chmod(0o700)
    assert {problem for problem, _ in findings(ran)} == {"unreadable"}
    assert is_stored(admin, stored[0].key)


def test_a_directory_that_cannot_be_read_is_named(
    stored: list[TileMetadata], root: Path, run: Run
) -> None:
    name = "d" * 200
    deepest = os.open(root, os.O_RDONLY)
    for _ in range(25):  # more than the longest path
        os.mkdir(name, dir_fd=deepest)
        above, deepest = deepest, os.open(name, os.O_RDONLY, dir_fd=deepest)
        os.close(above)
    os.close(deepest)

    ran = run("verify", "--root", root, "--json")

    ((problem, path),) = findings(ran)
    assert (problem, path[:200], path[-1]) == ("unreadable", name, "/")
    assert json_lines(ran)[0]["reason"] == "File name too long"
    shutil.rmtree(root / name)


def test_rows_without_a_known_content_need_only_a_file(
    admin: TileCacheClient, sql: psycopg.Connection[Any], root: Path, block: Block, run: Run
) -> None:
    store_row(sql, block.key(0), file_path="old.jpg")
    store_row(sql, block.key(1), file_path="gone.jpg")
    put(root, "old.jpg")

    ran = run("verify", "--root", root, "--hash", "--json", "--repair", "--yes", "--trust-root")

    assert findings(ran) == [("missing", "gone.jpg")]
    assert [is_stored(admin, block.key(i)) for i in (0, 1)] == [True, False]


def test_several_tiles_may_have_one_file(
    admin: TileCacheClient, root: Path, block: Block, run: Run
) -> None:
    contents = (CONTENT, "other!!", CONTENT)
    tiles = [
        good_tile(key, content, file_path="shared.png")
        for key, content in zip(block.keys(3), contents, strict=True)
    ]
    bulk_insert(admin, tiles)
    put(root, "shared.png")

    ran = run("verify", "--root", root, "--hash", "--json", "--repair", "--yes")

    assert findings(ran) == [("wrong_content", "shared.png")]
    assert list(list_evictions(admin)) == [], "other tiles name the file"
    assert (root / "shared.png").exists()


class Asking:
    """A verification on a terminal that asks whether to go on."""

    def __init__(self, daemon: DaemonProcess, *options: object) -> None:
        self._terminal, stdin = pty.openpty()
        self._process = subprocess.Popen(
            [TILECACHE, "verify", *map(str, options)],
            env=daemon_environment(admin_socket_path=daemon.admin_socket_path),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(stdin)
        assert self._process.stderr
        asked = b""
        while b"Continue?" not in asked:
            asked += (part := os.read(self._process.stderr.fileno(), 1_000))
            assert part, asked

    def agree(self) -> tuple[int, str]:
        """Answers; returns the exit code and what it says then."""
        os.write(self._terminal, b"y\n")
        _, said = self._process.communicate(timeout=60)
        return self._process.returncode, said.decode()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._terminal)


def test_each_file_is_checked_once_more_right_before_something_is_done(
    admin: TileCacheClient,
    stored: list[TileMetadata],
    root: Path,
    shared_daemon: DaemonProcess,
    block: Block,
) -> None:
    gone, replaced, restored = stored[:2], stored[2], stored[3]
    for each in (gone[0], restored):
        (root / each.file_path).unlink()
    put(root, replaced.file_path, CONTENT.upper())
    late, changed, orphan = (put(root, f"{name}.png") for name in ("late", "changed", "orphan"))
    options = ("--repair", "--remove-orphans", "--hash", "--trust-root", *AT_ONCE)

    with closing(Asking(shared_daemon, "--root", root, *options)) as asking:
        bulk_insert(admin, [good_tile(block.key(30), file_path="late.png")])
        newer = good_tile(replaced.key, "newer!!", file_path="newer.jpg", captured_at=NOW)
        put(root, newer.file_path, "newer!!")
        insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)
        put(root, restored.file_path)
        changed.unlink()
        code, said = asking.agree()

    assert code == 0, said
    assert "Deleted 1 row and removed 1 orphan." in said
    assert [is_stored(admin, each.key) for each in stored[:4]] == [False, True, True, True]
    assert (late.exists(), orphan.exists()) == (True, False)
    assert (root / newer.file_path).exists()


def test_a_repair_that_was_killed_continues(
    admin: TileCacheClient,
    stored: list[TileMetadata],
    root: Path,
    shared_daemon: DaemonProcess,
    run: Run,
) -> None:
    (root / stored[0].file_path).unlink()
    Asking(shared_daemon, "--root", root, "--repair").close()

    continued = run("verify", "--root", root, "--repair", "--yes")

    assert "Continuing" in continued.stderr
    assert continued.returncode == 0
    assert not is_stored(admin, stored[0].key)


def test_an_orphan_that_is_another_file_by_now_is_not_removed(root: Path) -> None:
    orphan = put(root, "1/orphan.png")
    seen = orphan.stat()
    with closing(TileFiles(root)) as files:
        put(root, "1/new.png").rename(orphan)
        assert not files.remove_unchanged("1/orphan.png", (seen.st_ino, seen.st_ctime_ns))
        assert orphan.exists()

        seen = orphan.stat()
        assert files.remove_unchanged("1/orphan.png", (seen.st_ino, seen.st_ctime_ns))
        assert not orphan.exists()
        assert not files.remove_unchanged("1/orphan.png", (seen.st_ino, seen.st_ctime_ns))


PICTURES = 4_000
"""Their findings take twice as much as a pipe and a buffer hold; a step's findings fit in."""


@pytest.fixture
def orphans(stored: list[TileMetadata], root: Path) -> list[str]:
    names = [f"{number // 100}/{number}.png" for number in range(PICTURES)]
    for name in names:
        put(root, name)
    return names


@pytest.fixture
def stopping(
    orphans: list[str], root: Path, shared_daemon: DaemonProcess, state: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A verification in the middle: it waits until what it has found is read."""
    with subprocess.Popen(
        [TILECACHE, "verify", "--root", root],
        env=daemon_environment(admin_socket_path=shared_daemon.admin_socket_path),
        stdout=subprocess.PIPE,
    ) as process:
        try:
            eventually(
                lambda: '"file_count": 1000' in "".join(map(Path.read_text, state.glob("*")))
            )
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_verification_that_was_stopped_continues(
    stopping: "subprocess.Popen[bytes]",
    orphans: list[str],
    root: Path,
    run: Run,
    number: signal.Signals,
) -> None:
    stopping.send_signal(number)
    stopping.wait(60)

    continued = run("verify", "--root", root, "--json")

    assert "Continuing the verification of" in continued.stderr
    assert " after 20 tiles and " in continued.stderr
    assert findings(continued) == [("orphan", name) for name in sorted(orphans)]
    assert json_lines(continued)[-1]["file_count"] == PICTURES + 20
    assert "Continuing" not in run("verify", "--root", root).stderr


def test_a_verification_that_was_stopped_can_begin_anew(
    stopping: "subprocess.Popen[bytes]", root: Path, state: Path, run: Run
) -> None:
    busy = run("verify", "--root", root)
    assert busy.returncode == 2
    assert "another process verifies this root" in busy.stderr
    stopping.kill()
    stopping.wait(60)
    (log,) = state.iterdir()
    recorded = log.read_bytes()

    for options in (["--restart"], ["--hash"]):
        log.write_bytes(recorded)
        ran = run("verify", "--root", root, "--json", *options)
        assert "Continuing" not in ran.stderr
        assert json_lines(ran)[-1]["orphan_count"] == PICTURES


def test_what_was_found_is_checked_again_when_it_continues(
    stopping: "subprocess.Popen[bytes]", orphans: list[str], root: Path, run: Run
) -> None:
    stopping.kill()
    stopping.wait(60)
    (root / orphans[0]).unlink()

    continued = run("verify", "--root", root, "--json")

    assert "Continuing" in continued.stderr
    assert findings(continued) == [("orphan", name) for name in sorted(orphans[1:])]
