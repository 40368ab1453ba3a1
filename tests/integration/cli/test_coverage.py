"""`tilecache coverage`: numbers and a map of a region."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.imagery import cut_blue_marble
from tilecache_daemon.cli.coverage_map import FRESH, KIND_COLOURS, MISSING

WHOLE_WORLD = "-90,-180,90,180"
FIJI = "-30,160,10,-150"  # across the antimeridian
WEST_OF_IT = (-50.0, 150.0, -10.0, 180.0)


@pytest.fixture(scope="module")
def oceania(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of zoom 4, only to the west of the antimeridian."""
    path = tmp_path_factory.mktemp("oceania")
    assert cut_blue_marble(path, 4, 4, WEST_OF_IT) == 6
    return path


@pytest.fixture
def filled(daemon: DaemonProcess, oceania: Path) -> DaemonProcess:
    run = run_tilecache("import", oceania, socket_path=daemon.socket_path)
    assert run.returncode == 0, run.stderr
    return daemon


def run_coverage(daemon: DaemonProcess, *arguments: object) -> dict[str, Any]:
    run = run_tilecache("coverage", *arguments, "--json", socket_path=daemon.socket_path)
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def test_the_numbers_are_those_of_the_region(filled: DaemonProcess) -> None:
    report = run_coverage(filled, "--zoom", 4, "--bbox", WHOLE_WORLD)

    assert (report["cell_count"], report["covered_count"], report["missing_count"]) == (
        256,
        6,
        250,
    )
    assert report["labels"] == {"fresh": 6}
    areas = report["missing"]
    assert (
        sum(
            (area["x_to"] - area["x_from"] + 1) * (area["y_to"] - area["y_from"] + 1)
            for area in areas
        )
        == 250
    )


@pytest.mark.parametrize(
    ("region", "cell_count"),
    [
        (("--cells", "15,15,8,10"), 3),
        (("--bbox", "-20,170,-10,179"), 1),
        (("--circle", "-16.6,168.75,1000"), 1),
    ],
)
def test_a_region_is_given_by_cells_a_box_or_a_circle(
    region: tuple[str, str], cell_count: int, filled: DaemonProcess
) -> None:
    report = run_coverage(filled, "--zoom", 4, *region)

    assert report["cell_count"] == report["covered_count"] == cell_count


def test_the_table_is_followed_by_the_missing_areas(filled: DaemonProcess) -> None:
    run = run_tilecache(
        "coverage", "--zoom", 4, "--cells", "14,15,7,8", socket_path=filled.socket_path
    )

    assert run.returncode == 0
    assert "50.0%" in run.stdout
    assert "missing: x 14 to 15, y 7 to 7" in run.stdout


def test_the_map_shows_covered_cells_on_the_right_side(
    filled: DaemonProcess, tmp_path: Path
) -> None:
    png = tmp_path / "map.png"
    run_coverage(filled, "--zoom", 4, "--bbox", FIJI, "--png", png)

    with Image.open(png) as image:
        pixels = image.convert("RGB")
    middle = pixels.height // 2
    row = [pixels.getpixel((x, middle)) for x in range(pixels.width)]
    fresh = [x for x, colour in enumerate(row) if colour == to_rgb(KIND_COLOURS[FRESH])]
    missing = [x for x, colour in enumerate(row) if colour == to_rgb(KIND_COLOURS[MISSING])]
    assert len(fresh) > 100
    assert len(missing) > 100
    assert max(fresh) < min(missing), "the region begins in the west of the antimeridian"


def to_rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_without_matplotlib_the_extra_is_named_before_the_daemon_is_called(
    filled: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError('none here', name='matplotlib')"
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    run = run_tilecache(
        *("coverage", "--zoom", 4, "--bbox", WHOLE_WORLD, "--png", tmp_path / "map.png"),
        socket_path=filled.socket_path,
    )

    assert run.returncode == 2
    assert "tilecache-daemon[plot]" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bbox", "1,2,3"], "SOUTH,WEST,NORTH,EAST"),
        (["--cells", "1,2,3,x"], "X_FROM,X_TO,Y_FROM,Y_TO"),
        (["--cells", "1,2,3,99999999999"], "--cells"),
        (["--bbox", WHOLE_WORLD, "--cells", "0,0,0,0"], "--circle"),
        ([], "--bbox"),
    ],
)
def test_an_invalid_region_is_a_usage_error(arguments: list[str], named: str) -> None:
    run = run_tilecache("coverage", "--zoom", 4, *arguments)

    assert run.returncode == 2
    assert named in run.stderr


def test_a_region_that_the_daemon_refuses_is_named(daemon: DaemonProcess) -> None:
    refused = {
        ("--bbox", "50,10,40,20"): "region.bounding_box.south",
        ("--bbox", "nan,10,40,20"): "region.bounding_box.south",
        ("--circle", "50,10,-5"): "region.circle.radius_meters",
        ("--cells", "0,16,0,0"): "region.cell_range.x_to",
    }
    for arguments, named in refused.items():
        run = run_tilecache("coverage", "--zoom", 4, *arguments, socket_path=daemon.socket_path)

        assert run.returncode == 4, arguments
        assert named in run.stderr
