"""One root: what `import` stores where the daemon has a tiles directory, and what removes by it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.admin import delete
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.stored_tiles import list_stored
from tests.terminal import answer_tilecache


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """The tiles directory, with two tiles in a directory of it."""
    directory = tmp_path / "tiles"
    for y in range(2):
        write_image(directory / "world" / "1" / "0" / f"{y}.png", y)
    return directory


def write_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (256, 256), (shade, 0, 0)).save(path)


@pytest.fixture
def daemon(database: str, short_directory: Path, tiles: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(short_directory, dsn=database, tiles_directory=tiles) as process:
        yield process


def stored_paths(daemon: DaemonProcess) -> set[str]:
    return {tile.file_path for tile in list_stored(daemon.client, range(2))}


def test_paths_are_relative_to_the_tiles_directory(daemon: DaemonProcess, tiles: Path) -> None:
    done = run_tilecache("import", tiles / "world", socket_path=daemon.socket_path)

    assert done.returncode == 0, done.stderr
    assert stored_paths(daemon) == {"world/1/0/0.png", "world/1/0/1.png"}


def test_images_elsewhere_need_a_root(daemon: DaemonProcess, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_image(elsewhere / "1" / "1" / "1.png")

    refused = run_tilecache("import", elsewhere, socket_path=daemon.socket_path)
    assert refused.returncode == 2
    assert "is not inside the daemon's tiles directory" in refused.stderr
    assert "--root DIR" in refused.stderr
    assert stored_paths(daemon) == set()

    asked = answer_tilecache(str(elsewhere), "import", elsewhere, socket_path=daemon.socket_path)
    assert asked.returncode == 0, asked.stderr
    assert "Root that stored paths are relative to" in asked.stderr
    assert stored_paths(daemon) == {"1/1/1.png"}

    given = ("import", elsewhere, "--root", tmp_path, "--on-conflict", "keep-existing")
    assert run_tilecache(*given, socket_path=daemon.socket_path).returncode == 0


def test_what_removes_files_has_the_same_root(daemon: DaemonProcess, tiles: Path) -> None:
    run_tilecache("import", tiles / "world", socket_path=daemon.socket_path)
    first, second = sorted(list_stored(daemon.client, range(2)), key=lambda tile: tile.file_path)
    delete(daemon.admin_client, tile_uuids=[first.tile_uuid])

    done = run_tilecache("evictions", "remove", "--yes", admin_socket_path=daemon.admin_socket_path)

    assert done.returncode == 0, done.stderr
    assert not (tiles / first.file_path).exists()
    assert (tiles / second.file_path).exists()


def test_without_a_tiles_directory_a_removal_needs_a_root(
    database: str, short_directory: Path
) -> None:
    with DaemonProcess(short_directory, dsn=database) as process:
        refused = run_tilecache(
            "evictions", "confirm", "--all-gone", admin_socket_path=process.admin_socket_path
        )

    assert refused.returncode == 2
    assert "--root DIR" in refused.stderr
