"""An import that was killed is run again, and ends as if it had not been."""

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon_process import TILECACHE, DaemonProcess, daemon_environment, run_tilecache
from tests.imagery import cut_blue_marble, list_pyramid, write_pmtiles
from tests.stored_tiles import count_covered, list_stored

ZOOMS = range(5)
TILE_COUNT = 341
HALF = 128  # of the 256 cells of the last zoom


@pytest.mark.parametrize("kind", ["tiles", "world.pmtiles"])
def test_an_import_killed_half_way_and_run_again_holds_every_tile_once(
    kind: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    pyramid, source = tmp_path / "tiles", tmp_path / kind
    cut_blue_marble(pyramid, ZOOMS.start, ZOOMS[-1])
    if source != pyramid:
        write_pmtiles(pyramid, source)
    importing = subprocess.Popen(
        [TILECACHE, "import", source, "--batch-size", "1"],
        env=daemon_environment(socket_path=daemon.socket_path),
        stdout=subprocess.DEVNULL,
    )
    while count_covered(daemon.client, ZOOMS[-1]) < HALF:
        assert importing.poll() is None, "it must not end before it is killed"
    importing.send_signal(signal.SIGKILL)
    importing.wait()
    left_by_the_killed = len(list_stored(daemon.client, ZOOMS))
    assert HALF <= left_by_the_killed < TILE_COUNT

    again = run_tilecache("import", source, "--json", socket_path=daemon.socket_path)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert report["inserted_count"] + report["already_present_count"] == TILE_COUNT

    stored = list_stored(daemon.client, ZOOMS)
    cells = Counter((tile.key.zoom, tile.key.x, tile.key.y) for tile in stored)
    assert cells == Counter((zoom, x, y) for zoom, x, y, _ in list_pyramid(pyramid))
    unpacked = source.with_suffix("")
    assert {path.relative_to(unpacked).as_posix() for *_, path in list_pyramid(unpacked)} == {
        tile.file_path for tile in stored
    }
