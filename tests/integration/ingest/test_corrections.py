"""`import --update-metadata`, where capture times come from, and what is said about them."""

import json
import os
import shutil
import signal
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from PIL import Image
from PIL.ExifTags import IFD, Base

from tests.admin import ACTIVE_CONFLICT, delete, set_sector
from tests.daemon_process import TILECACHE, DaemonProcess, daemon_environment, run_tilecache
from tests.imagery import cut_blue_marble, list_pyramid, write_mbtiles, write_pmtiles
from tests.stored_tiles import list_stored
from tests.tiles import TIMEOUT_S, timestamp
from tests.waiting import eventually
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_REJECTED,
    MarkUploadedRequest,
    TileMetadata,
    UploadedTile,
)

ZOOMS = range(3)
TILE_COUNT = 21
FLIGHT = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
ONBOARD = ("--source", "onboard_ingest", "--flight", FLIGHT)
JUNE = "2026-06-21T12:00:00Z"
EXIT_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def blue_marble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyramid")
    cut_blue_marble(path, ZOOMS.start, ZOOMS[-1])
    return path


@pytest.fixture
def pyramid(blue_marble: Path, tmp_path: Path) -> Path:
    """Tiles that were modified a minute after each other, a year ago."""
    copy = Path(shutil.copytree(blue_marble, tmp_path / "tiles"))
    start = datetime.now(timezone.utc).timestamp() - 365 * 86_400
    for index, (*_, path) in enumerate(list_pyramid(copy)):
        os.utime(path, (start + 60 * index,) * 2)
    return copy


def run_import(daemon: DaemonProcess, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    run = run_tilecache(
        *("import", *arguments, "--json"),
        socket_path=daemon.socket_path,
        admin_socket_path=daemon.admin_socket_path,
    )
    assert run.stdout, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return run.returncode, report


def stored_by_path(daemon: DaemonProcess) -> dict[str, TileMetadata]:
    return {tile.file_path: tile for tile in list_stored(daemon.client, ZOOMS)}


def captured(daemon: DaemonProcess) -> set[str]:
    """The capture times of all tiles."""
    return {tile.captured_at.ToJsonString() for tile in list_stored(daemon.client, ZOOMS)}


def test_another_time_and_path_are_corrected_and_the_upload_stays(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid, *ONBOARD)
    marks = [
        UploadedTile(tile_uuid=tile.tile_uuid, content_sha256=tile.content_sha256)
        for tile in list_stored(daemon.client, ZOOMS)
    ]
    daemon.client.store.MarkUploaded(MarkUploadedRequest(tiles=marks), timeout=TIMEOUT_S)
    before = stored_by_path(daemon)

    wanted = (*ONBOARD, "--captured-at", JUNE, "--root", pyramid.parent, "--update-metadata")
    exit_code, report = run_import(daemon, pyramid, *wanted)

    assert (exit_code, report["updated_count"], report["already_present_count"]) == (
        0,
        TILE_COUNT,
        0,
    )
    after = stored_by_path(daemon)
    for path, tile in before.items():
        tile.file_path = f"tiles/{path}"
        tile.captured_at.FromJsonString(JUNE)
        assert tile.HasField("uploaded_at")
        assert after[tile.file_path] == tile

    _, again = run_import(daemon, pyramid, *wanted)
    assert (again["updated_count"], again["already_present_count"]) == (0, TILE_COUNT)


def test_without_it_stored_tiles_keep_their_time_and_the_report_says_so(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid)
    before = captured(daemon)

    exit_code, report = run_import(
        daemon, pyramid, "--captured-at", JUNE, "--socket", daemon.admin_socket_path
    )

    assert (exit_code, captured(daemon)) == (0, before)
    assert report["warnings"] == [
        f"{TILE_COUNT} tiles that are stored already keep their capture time; --update-metadata "
        "corrects it."
    ]


def test_modification_times_correct_stored_ones_only_if_they_are_asked_for(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid, "--captured-at", JUNE)

    _, moved = run_import(daemon, pyramid, "--root", pyramid.parent, "--update-metadata")
    assert (moved["updated_count"], captured(daemon)) == (TILE_COUNT, {JUNE})
    assert moved["warnings"] == [
        f"{TILE_COUNT} tiles that are stored already keep their capture time; --captured-at or "
        "--captured-from corrects it, too."
    ]

    asked = ("--captured-from", "modified", "--root", pyramid.parent, "--update-metadata")
    _, report = run_import(daemon, pyramid, *asked)
    assert (report["updated_count"], len(captured(daemon))) == (TILE_COUNT, TILE_COUNT)


def test_new_corrected_and_different_tiles_are_told_apart(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid, "--max-zoom", 1)
    with Image.open(pyramid / "0/0/0.jpg") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pyramid / "0/0/0.jpg")

    exit_code, report = run_import(daemon, pyramid, "--captured-at", JUNE, "--update-metadata")

    assert exit_code == 1
    counts = ("inserted_count", "updated_count", "already_present_count", "refused_count")
    assert [report[name] for name in counts] == [16, 4, 0, 1]
    assert [refused["reason"] for refused in report["refused"]] == ["CONTENT_CONFLICT"]
    assert len(captured(daemon)) == 2


def test_a_tile_that_is_refused_does_not_keep_others_from_being_corrected(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid, "--captured-at", JUNE)
    in_two_days = datetime.now(timezone.utc).timestamp() + 2 * 86_400
    os.utime(pyramid / "0/0/0.jpg", (in_two_days,) * 2)

    exit_code, report = run_import(
        daemon, pyramid, "--captured-from", "modified", "--update-metadata"
    )

    assert (exit_code, report["updated_count"], report["failure"]) == (1, TILE_COUNT - 1, "")
    (refused,) = report["refused"]
    assert (refused["file"], refused["field"]) == ("0/0/0.jpg", "captured_at")


def test_a_corrected_tile_is_relabelled_and_not_refused_for_its_age(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    set_sector(daemon.admin_client, "front", ACTIVE_CONFLICT, (-90.0, -180.0, 90.0, 180.0))
    yesterday = (datetime.now(timezone.utc) - timedelta(days=1)).isoformat()
    run_import(daemon, pyramid, "--captured-at", yesterday)

    exit_code, report = run_import(
        daemon, pyramid, "--captured-at", "2020-01-01", "--update-metadata"
    )

    assert (exit_code, report["updated_count"]) == (0, TILE_COUNT)
    labels = {tile.freshness_label for tile in list_stored(daemon.client, ZOOMS)}
    assert labels == {FRESHNESS_LABEL_REJECTED}


def test_the_images_of_an_archive_take_the_place_of_those_that_were_named(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    archive, into = tmp_path / "world.pmtiles", tmp_path / "unpacked"
    write_pmtiles(pyramid, archive)
    run_import(daemon, pyramid, "--root", tmp_path)

    _, report = run_import(daemon, archive, "--into", into, "--root", tmp_path, "--update-metadata")

    assert report["updated_count"] == TILE_COUNT
    stored = stored_by_path(daemon)
    assert all((tmp_path / path).is_relative_to(into) for path in stored)
    assert all((tmp_path / path).is_file() for path in stored)


def test_a_path_on_the_removal_list_is_refused(daemon: DaemonProcess, pyramid: Path) -> None:
    run_import(daemon, pyramid, *ONBOARD, "--root", pyramid.parent)
    run_import(daemon, pyramid)
    gone = stored_by_path(daemon)["1/1/1.jpg"]
    delete(daemon.admin_client, tile_uuids=[gone.tile_uuid])

    exit_code, report = run_import(daemon, pyramid, *ONBOARD, "--update-metadata")

    assert (exit_code, report["updated_count"]) == (1, TILE_COUNT - 1)
    (refused,) = report["refused"]
    assert (refused["file"], refused["field"], refused["reason"]) == (
        "1/1/1.jpg",
        "file_path",
        "FILE_PENDING_REMOVAL",
    )


def test_it_needs_the_admin_socket_before_anything_is_imported(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    wanted = ("import", pyramid, "--update-metadata", "--socket")

    refused = run_tilecache(*wanted, daemon.socket_path)
    assert refused.returncode == 2
    assert "is not the admin socket" in refused.stderr
    assert list_stored(daemon.client, ZOOMS) == []

    assert run_tilecache(*wanted, daemon.admin_socket_path).returncode == 0


def test_corrections_continue_after_a_restart_of_a_killed_daemon(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    run_import(daemon, pyramid)
    process = subprocess.Popen(
        [
            *(TILECACHE, "import", pyramid, "--captured-at", JUNE, "--update-metadata"),
            *("--batch-size", "1", "--json"),
        ],
        env=daemon_environment(admin_socket_path=daemon.admin_socket_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: JUNE in captured(daemon))
    process.send_signal(signal.SIGSTOP)
    assert captured(daemon) != {JUNE}
    daemon.kill()
    process.send_signal(signal.SIGCONT)
    daemon.start()
    output, errors = process.communicate(timeout=EXIT_TIMEOUT_S)

    assert process.returncode == 0, errors
    report = json.loads(output)
    # An answer that was lost leaves its tile corrected already.
    assert report["updated_count"] + report["already_present_count"] == TILE_COUNT
    assert captured(daemon) == {JUNE}


WRITERS = {".mbtiles": write_mbtiles, ".pmtiles": write_pmtiles}


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_archive_is_imported_with_a_warning_of_its_one_time(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path, suffix: str
) -> None:
    archive = tmp_path / f"world{suffix}"
    WRITERS[suffix](pyramid, archive)
    os.utime(archive, (1_750_000_000,) * 2)

    run = run_tilecache("import", archive, socket_path=daemon.socket_path)

    assert run.returncode == 0
    words = " ".join(run.stderr.split())
    assert (
        f"Warning: All images have the capture time 2025-06-15T15:06:40Z, when {archive.name} "
        "was last modified. If the images are older, run it again with --captured-at TIME "
        "--update-metadata; without --update-metadata, stored tiles keep their capture time."
    ) in words


@pytest.mark.parametrize(
    ("modified", "warning"),
    [
        ("at one time", "All images have the capture time 2025-06-15T15:06:40Z, when each"),
        ("today", "All images have capture times of today, from "),
        ("at several times", None),
    ],
)
def test_a_tree_of_odd_times_is_imported_with_a_warning(
    daemon: DaemonProcess, pyramid: Path, modified: str, warning: str | None
) -> None:
    for index, (*_, path) in enumerate(list_pyramid(pyramid)):
        if modified == "at one time":
            os.utime(path, (1_750_000_000,) * 2)
        elif modified == "today":
            midnight = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0)
            os.utime(path, (midnight.timestamp() + index,) * 2)

    _, report = run_import(daemon, pyramid)
    _, told = run_import(daemon, pyramid, "--captured-at", JUNE, "--update-metadata")

    assert [each[: len(warning or "")] for each in report["warnings"]] == [warning] * bool(warning)
    assert told["warnings"] == []


def write_exif(path: Path, original: str, offset: str = "") -> None:
    """Gives an image EXIF."""
    with Image.open(path) as image:
        exif = image.getexif()
        tags = exif.get_ifd(IFD.Exif)
        tags[Base.DateTimeOriginal] = original
        if offset:
            tags[Base.OffsetTimeOriginal] = offset
        image.save(path, exif=exif)


def test_capture_times_come_from_the_exif_of_each_image(
    daemon: DaemonProcess, pyramid: Path
) -> None:
    write_exif(pyramid / "0/0/0.jpg", "2026:06:21 14:00:00", "+02:00")
    write_exif(pyramid / "1/0/0.jpg", "2026:06:21 14:00:00")

    exit_code, report = run_import(daemon, pyramid, "--captured-from", "exif")

    assert (exit_code, report["inserted_count"], report["refused_count"]) == (1, 2, TILE_COUNT - 2)
    assert {refused["reason"] for refused in report["refused"]} == {"NO_CAPTURE_TIME"}
    assert captured(daemon) == {JUNE, "2026-06-21T14:00:00Z"}


def test_the_time_of_a_large_picture_is_that_of_all_its_tiles(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "area.tif"
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = "2026:06:21 12:00:00"
    exif[IFD.Exif] = 0  # where it is, which Pillow fills in
    # More pixels than Pillow decodes.
    Image.new("1", (13_500, 13_500)).save(picture, exif=exif)

    exit_code, _ = run_import(daemon, pyramid, "--captured-from", picture)

    assert exit_code == 0
    assert captured(daemon) == {JUNE}


def test_a_sidecar_says_time_and_quality(daemon: DaemonProcess, pyramid: Path) -> None:
    run_import(daemon, pyramid)
    said = {"captured_at": "2026-06-21T14:00:00+02:00", "quality_metadata": {"cloud": 0.25}}
    for *_, path in list_pyramid(pyramid):
        path.with_name(f"{path.name}.json").write_text(json.dumps(said))
    (pyramid / "0/0/0.jpg.json").unlink()
    (pyramid / "1/0/0.jpg.json").write_text("[1]")
    (pyramid / "1/0/1.jpg.json").write_text('{"captured_at": "yesterday"}')

    exit_code, report = run_import(
        daemon, pyramid, "--captured-from", "sidecar", "--update-metadata"
    )

    assert (exit_code, report["updated_count"], report["ignored"]) == (1, TILE_COUNT - 3, [])
    assert {refused["file"]: refused["reason"] for refused in report["refused"]} == dict.fromkeys(
        ("0/0/0.jpg", "1/0/0.jpg", "1/0/1.jpg"), "NO_CAPTURE_TIME"
    )
    stored = stored_by_path(daemon)["2/0/0.jpg"]
    assert stored.captured_at == timestamp(datetime(2026, 6, 21, 12, tzinfo=timezone.utc))
    assert MessageToDict(stored.quality_metadata) == {"cloud": 0.25}


def test_the_sidecar_of_an_archive_is_that_of_all_its_images(
    daemon: DaemonProcess, pyramid: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "world.mbtiles"
    write_mbtiles(pyramid, archive)
    (tmp_path / "world.mbtiles.json").write_text(json.dumps({"captured_at": JUNE}))

    exit_code, report = run_import(daemon, archive, "--captured-from", "sidecar")

    assert (exit_code, report["warnings"]) == (0, [])
    assert captured(daemon) == {JUNE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--captured-from", "exfi"), "'exfi' is neither modified, exif, sidecar nor a picture"),
        (("--captured-from", __file__), "its EXIF cannot be read"),
        (("--captured-at", JUNE, "--captured-from", "exif"), "either --captured-at or"),
        (("--captured-at", "2026-13-01"), "--captured-at"),
    ],
)
def test_a_mistyped_source_of_times_is_named(
    pyramid: Path, arguments: tuple[str, ...], message: str
) -> None:
    run = run_tilecache("import", pyramid, *arguments)

    assert run.returncode == 2
    assert message in " ".join(run.stderr.replace("│", " ").split())
