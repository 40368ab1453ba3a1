"""Exports and imports that are killed, or have no room, go on where they were."""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.daemon_process import EXIT_TIMEOUT_S, TILECACHE, daemon_environment
from tests.integration.bundles.conftest import Cache, import_json, prepare
from tests.tiles import bulk_insert, tile_key
from tests.waiting import eventually

COUNT = 3_000


@pytest.fixture
def aircraft(aircraft: Cache) -> Cache:
    """With some thousand tiles."""
    images = [(number, os.urandom(500)) for number in range(COUNT)]
    tiles = [
        prepare(aircraft.tiles, tile_key(14, number // 100, number % 100), image)
        for number, image in images
    ]
    (answer,) = bulk_insert(aircraft.client, tiles)
    assert answer.inserted_count == COUNT
    return aircraft


def kill_when(cache: Cache, condition: Callable[[], object], *arguments: object) -> None:
    """Kills a command when a condition holds."""
    process = subprocess.Popen(
        [TILECACHE, *map(str, arguments)],
        env=daemon_environment(
            socket_path=cache.socket_path, admin_socket_path=cache.admin_socket_path
        ),
    )
    try:
        eventually(lambda: process.poll() is not None or condition())
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait(EXIT_TIMEOUT_S) == -signal.SIGKILL, "it ended before it was killed"


def images_in(bundle: Path) -> list[Path]:
    return list((bundle / "images").rglob("*.jpg"))


def test_a_killed_export_goes_on_where_it_was(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    kill_when(aircraft, lambda: len(images_in(bundle)) > COUNT // 10, "export", bundle)
    there = {path: path.stat().st_ino for path in images_in(bundle)}
    assert len(there) < COUNT
    refused = ground.run("import", bundle)
    assert (refused.returncode, ground.rows()) == (2, [])
    assert "incomplete" in refused.stderr

    assert aircraft.run("export", bundle).returncode == 0
    assert {path: path.stat().st_ino for path in there} == there
    assert import_json(ground, bundle)[0] == 0
    assert ground.rows() == aircraft.rows()
    assert ground.files() == aircraft.files()
    again = aircraft.run("export", bundle)
    assert again.returncode == 2
    assert "complete bundle already" in again.stderr


def test_a_tile_that_was_replaced_since_a_killed_export_is_exported_as_it_is_now(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    kill_when(aircraft, lambda: images_in(bundle), "export", bundle)
    path = images_in(bundle)[0].relative_to(bundle / "images")
    zoom, x, y = map(int, path.with_suffix("").parts)
    (aircraft.tiles / path).write_bytes(b"new")
    digest = hashlib.sha256(b"new").hexdigest()
    with psycopg.connect(aircraft.dsn, autocommit=True) as sql:
        sql.execute(
            "UPDATE tiles SET content_sha256 = %s, disk_bytes = 3 "
            "WHERE (zoom, x, y) = (%s, %s, %s)",
            [digest, zoom, x, y],
        )

    assert aircraft.run("export", bundle).returncode == 0
    assert (bundle / "images" / path).read_bytes() == b"new"
    assert len(images_in(bundle)) == COUNT
    assert import_json(ground, bundle)[0] == 0
    assert ground.rows() == aircraft.rows()


def test_a_killed_export_into_a_tar_begins_anew(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    target, part = tmp_path / "bundle.tar", tmp_path / "bundle.tar.part"
    kill_when(aircraft, lambda: part.exists() and part.stat().st_size > 200_000, "export", target)
    assert not target.exists()
    refused = ground.run("import", part)
    assert refused.returncode == 2
    assert "incomplete" in refused.stderr

    assert aircraft.run("export", target).returncode == 0
    assert not part.exists()
    assert import_json(ground, target)[0] == 0
    assert ground.rows() == aircraft.rows()
    assert ground.files() == aircraft.files()


def test_a_killed_import_goes_on_where_it_was(
    aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert aircraft.run("export", bundle).returncode == 0
    kill_when(ground, ground.rows, "import", bundle, "--batch-size", 100)
    there = len(ground.rows())
    assert 0 < there < COUNT
    files = ground.files()
    assert {row[13] for row in ground.rows()} <= set(files)

    exit_code, report = import_json(ground, bundle)
    # What was sent when it was killed may have been stored since.
    assert (exit_code, report["inserted_count"] + report["already_present_count"]) == (0, COUNT)
    assert report["already_present_count"] >= there
    assert ground.rows() == aircraft.rows()
    assert ground.files() == aircraft.files()


def test_a_bundle_without_its_header_is_incomplete(aircraft: Cache, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert aircraft.run("export", bundle).returncode == 0
    (bundle / "bundle.json").unlink()
    refused = aircraft.run("import", bundle)
    assert refused.returncode == 2
    assert "incomplete" in refused.stderr
    assert aircraft.run("export", bundle).returncode == 0
    assert import_json(aircraft, bundle)[1]["already_present_count"] == COUNT


def test_nothing_else_is_written_to(aircraft: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of somebody")
    refused = aircraft.run("export", tmp_path)
    assert refused.returncode == 2
    assert "neither empty" in refused.stderr
    (tmp_path / "there.tar").write_text("of somebody")
    refused = aircraft.run("export", tmp_path / "there.tar")
    assert refused.returncode == 2
    assert (tmp_path / "there.tar").read_text() == "of somebody"


def test_ctrl_c_leaves_an_incomplete_bundle(aircraft: Cache, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    process = subprocess.Popen(
        [TILECACHE, "export", bundle, "--json"],
        env=daemon_environment(socket_path=aircraft.socket_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: bundle.exists() and images_in(bundle))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=EXIT_TIMEOUT_S)
    summary = json.loads(output)
    assert (process.returncode, summary["failure"]) == (130, "interrupted")
    assert not (bundle / "bundle.json").exists()


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=20k", disk], check=True)


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
@pytest.mark.parametrize("small_disk", ["size=400k"], indirect=True)
def test_an_export_without_room_goes_on_where_there_is_some(
    name: str, small_disk: Path, aircraft: Cache, ground: Cache
) -> None:
    target = small_disk / name
    full = aircraft.run("export", target)
    assert full.returncode == 1
    assert full.stderr.startswith("tilecache: ")
    assert "No space left" in full.stderr
    assert "run it again" in full.stdout
    assert not (target / "bundle.json").exists()
    assert ground.run("import", target).returncode == 2

    enlarge(small_disk)
    assert aircraft.run("export", target).returncode == 0
    assert import_json(ground, target)[0] == 0
    assert ground.rows() == aircraft.rows()


@pytest.mark.parametrize("small_disk", ["size=64m,nr_inodes=1000"], indirect=True)
def test_an_import_without_room_goes_on_where_there_is_some(
    small_disk: Path, aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    assert aircraft.run("export", tmp_path / "bundle").returncode == 0
    arguments = tmp_path / "bundle", "--root", small_disk
    exit_code, report = import_json(ground, *arguments, "--batch-size", 100)
    assert exit_code == 1
    assert "no room" in report["failure"]
    stored = ground.rows()
    assert 0 < len(stored) < COUNT
    assert all((small_disk / row[13]).exists() for row in stored)

    enlarge(small_disk)
    exit_code, report = import_json(ground, *arguments)
    assert (exit_code, report["already_present_count"]) == (0, len(stored))
    assert ground.rows() == aircraft.rows()


@pytest.mark.parametrize("small_disk", ["size=400k"], indirect=True)
def test_an_import_asks_for_room_before_it_begins(
    small_disk: Path, aircraft: Cache, ground: Cache, tmp_path: Path
) -> None:
    assert aircraft.run("export", tmp_path / "bundle").returncode == 0
    refused = ground.run("import", tmp_path / "bundle", "--root", small_disk)
    assert refused.returncode == 5
    assert "no room" in refused.stderr
    assert (ground.rows(), list(small_disk.iterdir())) == ([], [])
