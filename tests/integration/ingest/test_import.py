"""`tilecache import`: it stores all valid tiles, reports the others, and can be repeated."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.daemon_process import TILECACHE, DaemonProcess, daemon_environment, run_tilecache
from tests.imagery import cut_blue_marble, list_pyramid, write_mbtiles, write_pmtiles
from tests.stored_tiles import count_covered, list_stored
from tilecache.v1.tile_metadata_store_pb2 import FreshnessLabel, TileMetadata
from tilecache_daemon import derive_tile_id

ZOOMS = range(4)
TILE_COUNT = 85
FLIGHT = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
EXIT_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def blue_marble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyramid")
    cut_blue_marble(path, ZOOMS.start, ZOOMS[-1])
    return path


@pytest.fixture
def pyramid(blue_marble: Path, tmp_path: Path) -> Path:
    """A copy of the tiles, for the test to change."""
    return Path(shutil.copytree(blue_marble, tmp_path / "tiles"))


def run_import(daemon: DaemonProcess, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    run = run_tilecache("import", *arguments, "--json", socket_path=daemon.socket_path)
    assert run.stdout, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return run.returncode, report


def stored_by_path(daemon: DaemonProcess) -> dict[str, TileMetadata]:
    return {tile.file_path: tile for tile in list_stored(daemon.client, range(6))}


def repaint(path: Path) -> None:
    """Replaces a tile's image by a different one."""
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


@pytest.mark.parametrize("kind", ["tiles", "world.mbtiles", "world.pmtiles"])
def test_every_tile_of_a_source_is_stored_with_its_image(
    kind: str, daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    source = tmp_path / kind
    write = {".mbtiles": write_mbtiles, ".pmtiles": write_pmtiles}.get(source.suffix)
    if write:
        write(pyramid, source)
    exit_code, report = run_import(daemon, source, "--batch-size", 20)
    directory = source.with_suffix("")

    assert (exit_code, report["inserted_count"]) == (0, TILE_COUNT)
    stored = list_stored(daemon.client, ZOOMS)
    expected = {
        str(derive_tile_id(zoom, x, y, "googlemaps", None)): path.read_bytes()
        for zoom, x, y, path in list_pyramid(pyramid)
    }
    assert {tile.tile_uuid: (directory / tile.file_path).read_bytes() for tile in stored} == (
        expected
    )
    for tile in stored:
        image = expected[tile.tile_uuid]
        assert tile.file_path == f"{tile.key.zoom}/{tile.key.x}/{tile.key.y}.jpg"
        assert tile.content_sha256 == hashlib.sha256(image).hexdigest()
        assert (tile.disk_bytes, tile.tile_size_pixels) == (len(image), 256)
        origin = directory / tile.file_path if source == directory else source
        assert tile.captured_at.ToMicroseconds() == origin.stat().st_mtime_ns // 1000


def test_source_flight_time_and_root_are_stored_as_given(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    exit_code, _ = run_import(
        daemon,
        *(pyramid, "--source", "onboard_ingest", "--flight", FLIGHT.upper()),
        *("--captured-at", "2026-10-01T12:00:00+02:00", "--root", pyramid.parent),
        *("--min-zoom", 1, "--max-zoom", 1),
    )

    assert exit_code == 0
    stored = stored_by_path(daemon)
    assert set(stored) == {f"tiles/1/{x}/{y}.jpg" for x in (0, 1) for y in (0, 1)}
    tile = stored["tiles/1/1/0.jpg"]
    assert tile.tile_uuid == str(derive_tile_id(1, 1, 0, "onboard_ingest", FLIGHT))
    assert tile.captured_at.ToJsonString() == "2026-10-01T10:00:00Z"


def test_a_second_run_changes_nothing(daemon: DaemonProcess, pyramid: Path) -> None:
    run_import(daemon, pyramid)
    before = stored_by_path(daemon)
    exit_code, report = run_import(daemon, pyramid)

    assert (exit_code, report["already_present_count"]) == (0, TILE_COUNT)
    assert stored_by_path(daemon) == before


def test_refused_tiles_are_named_and_the_others_are_stored(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    (pyramid / "5/99").mkdir(parents=True)
    shutil.copy(pyramid / "0/0/0.jpg", pyramid / "5/99/1.png")
    os.truncate(pyramid / "2/1/1.jpg", 1000)
    (pyramid / "2/1/2.jpg").write_text("<html>Too many requests</html>")
    (pyramid / "metadata.json").write_text("{}")
    exit_code, report = run_import(daemon, pyramid)

    assert exit_code == 1
    assert (report["inserted_count"], report["refused_count"]) == (TILE_COUNT - 2, 3)
    assert (report["total_count"], report["ignored"]) == (TILE_COUNT + 1, ["metadata.json"])
    refused = {refusal["file"]: refusal for refusal in report["refused"]}
    assert set(refused) == {"5/99/1.png", "2/1/1.jpg", "2/1/2.jpg"}
    assert refused["5/99/1.png"]["field"] == "key.x"
    assert "truncated" in refused["2/1/1.jpg"]["message"]
    assert len(stored_by_path(daemon)) == TILE_COUNT - 2


def test_the_report_has_examples_of_each_reason(daemon: DaemonProcess, pyramid: Path) -> None:
    for y in range(5):
        (pyramid / f"3/1/{y}.jpg").write_text("not an image")
    wanted = ("import", pyramid, "--captured-at", "2026-10-01")
    run = run_tilecache(*wanted, socket_path=daemon.socket_path)

    assert run.returncode == 1
    assert "Refused 5 tiles (UNREADABLE_FILE):" in run.stdout
    assert "3/1/0.jpg: not a PNG, JPEG or WebP image" in run.stdout
    assert "... and 2 more" in run.stdout
    # Where there is no terminal, rich ends its progress bar with an empty line before 14.3.
    assert not run.stderr.strip()


def test_a_different_image_of_a_stored_tile_is_refused_with_the_daemons_reason(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid)
    repaint(pyramid / "3/4/2.jpg")
    exit_code, report = run_import(daemon, pyramid)

    assert (exit_code, report["already_present_count"]) == (1, TILE_COUNT - 1)
    [refused] = report["refused"]
    assert (refused["file"], refused["reason"]) == ("3/4/2.jpg", "CONTENT_CONFLICT")


@pytest.mark.parametrize(
    ("on_conflict", "hours_later", "outcome"),
    [
        ("keep-existing", 1, "kept_existing_count"),
        ("replace-if-newer", 1, "replaced_count"),
        ("replace-if-newer", -1, "kept_existing_count"),
    ],
)
def test_a_conflict_is_resolved_as_requested(
    on_conflict: str, hours_later: int, outcome: str, daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid)
    image = pyramid / "3/4/2.jpg"
    captured_at = image.stat().st_mtime + hours_later * 3600
    repaint(image)
    os.utime(image, (captured_at, captured_at))
    exit_code, report = run_import(daemon, pyramid, "--on-conflict", on_conflict)

    assert (exit_code, report[outcome]) == (0, 1)
    is_new = stored_by_path(daemon)["3/4/2.jpg"].content_sha256 == (
        hashlib.sha256(image.read_bytes()).hexdigest()
    )
    assert is_new == (outcome == "replaced_count")


def test_the_image_of_a_stored_tile_survives_a_conflicting_archive(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    archive, into = tmp_path / "world.pmtiles", tmp_path / "unpacked"
    write_pmtiles(pyramid, archive)
    run_import(daemon, archive, "--into", into)
    for _, _, _, path in list_pyramid(pyramid):
        repaint(path)
    write_pmtiles(pyramid, archive)
    exit_code, report = run_import(daemon, archive, "--into", into)

    assert (exit_code, report["refused_count"]) == (1, TILE_COUNT)
    files = {path.relative_to(into).as_posix() for *_, path in list_pyramid(into)}
    stored = stored_by_path(daemon)
    assert files == set(stored)
    for path, tile in stored.items():
        assert hashlib.sha256((into / path).read_bytes()).hexdigest() == tile.content_sha256


@pytest.mark.parametrize("policy", ["keep-existing", "replace-if-newer"])
def test_an_archive_whose_tiles_are_not_stored_leaves_no_files(
    policy: str, daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    archive, into = tmp_path / "world.pmtiles", tmp_path / "unpacked"
    write_pmtiles(pyramid, archive)
    run_import(daemon, archive, "--into", into)
    for zoom, _, _, path in list_pyramid(pyramid):
        if zoom == 3:
            repaint(path)
    write_pmtiles(pyramid, archive)
    lost = into / "0/0/0.jpg"
    lost.unlink()
    _, report = run_import(
        daemon,
        *(archive, "--into", into, "--on-conflict", policy),
        *("--captured-at", "2020-01-01T00:00:00Z"),
    )

    assert (report["kept_existing_count"], report["already_present_count"]) == (64, 21)
    files = {path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file()}
    assert files == set(stored_by_path(daemon))
    for path, tile in stored_by_path(daemon).items():
        assert hashlib.sha256((into / path).read_bytes()).hexdigest() == tile.content_sha256


def test_an_archive_whose_tiles_are_stored_elsewhere_leaves_no_files(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    archive, into = tmp_path / "world.pmtiles", tmp_path / "unpacked"
    write_pmtiles(pyramid, archive)
    run_import(daemon, pyramid)
    _, report = run_import(daemon, archive, "--into", into, "--root", tmp_path)

    assert report["already_present_count"] == TILE_COUNT
    assert not [path for path in into.rglob("*") if path.is_file()]


def test_nothing_of_an_unreadable_archive_is_stored(daemon: DaemonProcess, tmp_path: Path) -> None:
    foreign = tmp_path / "world.mbtiles"
    foreign.write_bytes(b"not SQLite" * 1000)
    run = run_tilecache("import", foreign, socket_path=daemon.socket_path)

    assert run.returncode == 2
    assert str(foreign) in run.stderr
    assert list_stored(daemon.client, ZOOMS) == []
    assert [path.name for path in tmp_path.iterdir()] == ["world.mbtiles"]


def test_invalid_rows_are_refused_and_the_others_stored(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "world.mbtiles"
    write_mbtiles(pyramid, archive)
    with closing(sqlite3.connect(archive)) as database, database:
        database.execute("INSERT INTO tiles VALUES (NULL, 0, 0, NULL), (3, 0, 8, x'00')")
    exit_code, report = run_import(daemon, archive)

    assert (exit_code, report["inserted_count"], report["refused_count"]) == (1, TILE_COUNT, 2)
    assert len(list_stored(daemon.client, ZOOMS)) == TILE_COUNT


def test_a_wrong_option_is_named(daemon: DaemonProcess, pyramid: Path) -> None:
    wrong = (
        ("--flight", "not-a-flight"),
        ("--captured-at", "yesterday"),
        ("--source", "bing"),
        ("--min-zoom", 3, "--max-zoom", 2),
        ("--into", "elsewhere"),
        ("--root", "/usr"),
        ("--flight", FLIGHT),
        ("--source", "onboard_ingest"),
    )
    for arguments in wrong:
        run = run_tilecache("import", pyramid, *arguments, socket_path=daemon.socket_path)

        assert run.returncode == 2, arguments
        assert arguments[0] in run.stderr
    assert list_stored(daemon.client, ZOOMS) == []


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("no tiles here")
    run = run_tilecache("import", tmp_path)

    assert run.returncode == 2
    assert str(tmp_path) in run.stderr


def test_without_a_daemon_it_exits_with_3(pyramid: Path, tmp_path: Path) -> None:
    run = run_tilecache("import", pyramid, socket_path=tmp_path / "no.sock")

    assert run.returncode == 3
    assert "no.sock" in run.stderr


def start_slow_import(daemon: DaemonProcess, pyramid: Path) -> "subprocess.Popen[str]":
    """An import in progress that commits each tile separately."""
    process = subprocess.Popen(
        [TILECACHE, "import", pyramid, "--json", "--batch-size", "1"],
        env=daemon_environment(socket_path=daemon.socket_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not count_covered(daemon.client, ZOOMS[-1]):
        assert process.poll() is None, "the import ended too early"
    process.send_signal(signal.SIGSTOP)
    return process


def test_ctrl_c_stores_the_batches_in_flight_and_reports_them(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    process = start_slow_import(daemon, pyramid)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=EXIT_TIMEOUT_S)
    report = json.loads(output)

    assert (process.returncode, report["interrupted"]) == (130, True)
    assert 0 < report["inserted_count"] < TILE_COUNT
    assert len(list_stored(daemon.client, ZOOMS)) == report["inserted_count"]

    exit_code, report_again = run_import(daemon, pyramid)
    assert exit_code == 0
    assert report_again["already_present_count"] == report["inserted_count"]
    assert len(list_stored(daemon.client, ZOOMS)) == TILE_COUNT


def test_an_import_continues_after_a_restart_of_a_killed_daemon(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    process = start_slow_import(daemon, pyramid)
    daemon.kill()
    process.send_signal(signal.SIGCONT)
    daemon.start()
    output, errors = process.communicate(timeout=EXIT_TIMEOUT_S)
    report = json.loads(output)

    assert process.returncode == 0, errors
    assert report["inserted_count"] + report["already_present_count"] == TILE_COUNT
    stored = list_stored(daemon.client, ZOOMS)
    assert Counter(tile.freshness_label for tile in stored) == {
        FreshnessLabel.FRESHNESS_LABEL_FRESH: TILE_COUNT
    }
