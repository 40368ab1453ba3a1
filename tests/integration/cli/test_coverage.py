"""`tilecache coverage`: numbers and a map of a region."""

import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from tests.admin import ACTIVE_CONFLICT, REJECT, STABLE_REAR, set_rule, set_sector
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.imagery import cut_blue_marble
from tilecache_daemon.cli.coverage_map import FRESH, KIND_COLOURS, MISSING

PLANS = Path(__file__).parents[2] / "plans"
WHOLE_WORLD = "-90,-180,90,180"
FIJI = "-30,160,10,-150"  # across the antimeridian
WEST_OF_IT = (-50.0, 150.0, -10.0, 180.0)


@pytest.fixture(scope="module")
def oceania(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of zoom 4, only to the west of the antimeridian."""
    path = tmp_path_factory.mktemp("oceania")
    assert cut_blue_marble(path, 4, 4, WEST_OF_IT) == 6
    return path


@pytest.fixture(scope="module")
def filled(shared_daemon: DaemonProcess, oceania: Path) -> DaemonProcess:
    """With tiles that no test changes."""
    return fill(shared_daemon, oceania)


@pytest.fixture
def changeable(daemon: DaemonProcess, oceania: Path) -> DaemonProcess:
    """With tiles for one test."""
    return fill(daemon, oceania)


def fill(daemon: DaemonProcess, tiles: Path) -> DaemonProcess:
    run = run_tilecache("import", tiles, socket_path=daemon.socket_path)
    assert run.returncode == 0, run.stderr
    return daemon


def run_coverage(daemon: DaemonProcess, *arguments: object) -> list[dict[str, Any]]:
    """The lines of each zoom, and the summary."""
    run = run_tilecache("coverage", *arguments, "--json", socket_path=daemon.socket_path)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_the_numbers_are_those_of_the_region(filled: DaemonProcess) -> None:
    zoom, summary = run_coverage(filled, "--zoom", 4, "--bbox", WHOLE_WORLD)

    assert zoom.pop("zoom") == 4
    assert (zoom.pop("kind"), summary.pop("kind")) == ("zoom", "summary")
    assert zoom == summary
    counts = ("cells", "usable", "stale", "missing", "fresh", "rejected")
    assert [summary[name] for name in counts] == [256, 6, 0, 250, 6, 0]
    assert summary["usable_bytes"] > 0
    assert summary["estimated_fetch_bytes"] == round(summary["usable_bytes"] / 6 * 250)
    assert summary["oldest_captured_at"].endswith("Z")
    assert summary["at"] is None


def test_several_zooms_are_a_line_each(filled: DaemonProcess) -> None:
    lines = run_coverage(filled, "--zoom", "5,3-4", "--zoom", 4, "--bbox", WHOLE_WORLD)

    assert [(line.get("zoom"), line["cells"], line["usable"]) for line in lines] == [
        (3, 64, 0),
        (4, 256, 6),
        (5, 1024, 0),
        (None, 1344, 6),
    ]
    table = run_tilecache(
        *("coverage", "--zoom", "3-4", "--bbox", WHOLE_WORLD), socket_path=filled.socket_path
    )
    assert "all" in table.stdout


def test_stale_cells_are_not_usable(database: str, changeable: DaemonProcess) -> None:
    with psycopg.connect(database) as sql:
        sql.execute("UPDATE tiles SET freshness_status = 'rejected' WHERE y = 8")

    _, summary = run_coverage(changeable, "--zoom", 4, "--bbox", WHOLE_WORLD)

    counts = ("usable", "stale", "missing", "fresh", "rejected")
    assert [summary[name] for name in counts] == [4, 2, 250, 4, 2]
    run = run_tilecache(
        *("coverage", "--zoom", 4, "--cells", "14,15,7,8"), socket_path=changeable.socket_path
    )
    assert "stale: zoom 4, x 14 to 15, y 8 to 8" in run.stdout
    assert "missing: zoom 4, x 14 to 15, y 7 to 7" in run.stdout


def test_coverage_on_a_day_is_that_of_its_end(changeable: DaemonProcess) -> None:
    """The tiles are those of 2004; in the sector they are rejected after a hundred years."""
    admin = changeable.admin_client
    oldest = run_coverage(changeable, "--zoom", 4, "--bbox", WHOLE_WORLD)[1]["oldest_captured_at"]
    captured = datetime.fromisoformat(oldest.replace("Z", "+00:00"))
    set_rule(admin, STABLE_REAR, 1_200, REJECT)
    set_rule(admin, ACTIVE_CONFLICT, 1_200, REJECT)
    set_sector(admin, "all", ACTIVE_CONFLICT, (-90, -180, 90, 180))
    day = captured.replace(year=captured.year + 100)

    usable = {
        moment: run_coverage(changeable, "--zoom", 4, "--bbox", WHOLE_WORLD, "--on", moment)[1]
        for moment in (
            f"{day - timedelta(days=1):%Y-%m-%d}",
            f"{day:%Y-%m-%d}",
            f"{day - timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}",
            f"{day + timedelta(seconds=1):%Y-%m-%d %H:%M:%S}",
        )
    }

    assert [line["usable"] for line in usable.values()] == [6, 0, 6, 0]
    assert [line["stale"] for line in usable.values()] == [0, 6, 0, 6]
    at = usable[f"{day:%Y-%m-%d}"]["at"]
    assert at == f"{day:%Y-%m-%d}T23:59:59.999999Z"


@pytest.mark.parametrize(
    ("region", "cell_count"),
    [
        (("--cells", "15,15,8,10"), 3),
        (("--bbox", "-20,170,-10,179"), 1),
        (("--circle", "-16.6,168.75,1000"), 1),
        (("--route", "-16.6,168.75 -16.6,169.75", "--width", "1000"), 1),
    ],
)
def test_a_region_is_given_in_several_ways(
    region: tuple[str, ...], cell_count: int, filled: DaemonProcess
) -> None:
    _, summary = run_coverage(filled, "--zoom", 4, *region)

    assert summary["cells"] == summary["usable"] == cell_count


def test_a_route_and_an_area_are_read_from_files(filled: DaemonProcess) -> None:
    route = run_coverage(filled, "--zoom", 15, "--route", PLANS / "survey.plan", "--width", 500)
    by_hand = (
        "50.42,30.58 50.40,30.62 50.36,30.70 50.345,30.72 50.345,30.74 50.335,30.74 50.335,30.72 "
        "50.31,30.79 50.42,30.58"
    )
    assert route == run_coverage(filled, "--zoom", 15, "--route", by_hand, "--width", 500)

    tracks = run_coverage(filled, "--zoom", 12, "--route", PLANS / "track.gpx", "--width", 2000)
    parts = [
        run_coverage(filled, "--zoom", 12, "--route", part, "--width", 2000)[-1]["cells"]
        for part in ("50.42,30.58 50.40,30.62", "49.9,30 49.95,30.1", "50,30.5 50.1,30.5")
    ]
    assert tracks[-1]["cells"] <= sum(parts)
    assert tracks[-1]["cells"] > max(parts)

    fence = run_coverage(filled, "--zoom", 17, "--area", PLANS / "survey.plan")[-1]["cells"]
    box = run_coverage(filled, "--zoom", 17, "--bbox", "50.3,30.5,50.4,30.8")[-1]["cells"]
    assert 0.95 * box < fence < box
    for name in ("places.kml", "areas.geojson"):
        assert run_coverage(filled, "--zoom", 12, "--area", PLANS / name)[-1]["cells"] > 0


def test_the_table_is_followed_by_the_missing_areas(filled: DaemonProcess) -> None:
    run = run_tilecache(
        "coverage", "--zoom", 4, "--cells", "14,15,7,8", socket_path=filled.socket_path
    )

    assert run.returncode == 0
    assert "50.0%" in run.stdout
    assert "missing: zoom 4, x 14 to 15, y 7 to 7" in run.stdout


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


@pytest.mark.parametrize(
    "region",
    [
        ("--route", "-20,165 -17,-175 -25,-170", "--width", "300000"),
        ("--circle", "-17,179,900000"),
        ("--cells", "0,3,5,9"),
    ],
)
def test_a_map_of_any_region_is_drawn_with_its_outline(
    filled: DaemonProcess, tmp_path: Path, region: tuple[str, ...]
) -> None:
    png = tmp_path / "map.png"
    run_coverage(filled, "--zoom", 6, *region, "--on", "2030-01-01", "--png", png)

    with Image.open(png) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert to_rgb(KIND_COLOURS[MISSING]) in colours


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
        (["--route", "1,2 3,4"], "--width"),
        (["--route", "nowhere.plan", "--width", "5"], "'nowhere.plan' is neither a file nor"),
        (["--area", "nowhere.plan"], "nowhere.plan: No such file or directory"),
        (["--area", "."], ".: Is a directory"),
        (["--area", PLANS / "track.gpx"], "track.gpx: has no area; it has a route: use --route"),
        (["--area", __file__], "test_coverage.py: is not a QGroundControl plan, QGC WPL 110"),
        (["--area", PLANS / "places.kml", "--bbox", "0,0,1,1"], "--route and --area"),
        (["--bbox", "0,0,1,1", "--width", "5"], "--route"),
        (["--route", "1 2", "--width", "5"], "LAT,LON LAT,LON"),
        (["--route", "1,2 3,x", "--width", "5"], "LAT,LON"),
        (["--bbox", "0,0,1,1", "--zoom", "4-23"], "0-22"),
        (["--bbox", "0,0,1,1", "--zoom", "5-4"], "lowest"),
        (["--bbox", "0,0,1,1", "--zoom", "4;5"], "13-15"),
        (["--bbox", "0,0,1,1", "--zoom", "5", "--png", "x.png"], "one zoom"),
        (["--bbox", "0,0,1,1", "--on", "tomorrow"], "2026-12-24"),
    ],
)
def test_an_invalid_region_is_a_usage_error(arguments: list[object], named: str) -> None:
    run = run_tilecache("coverage", "--zoom", 4, *arguments)

    assert run.returncode == 2
    assert named in " ".join(run.stderr.split())


def test_a_region_that_the_daemon_refuses_is_named(shared_daemon: DaemonProcess) -> None:
    refused = {
        ("--bbox", "50,10,40,20"): "region.bounding_box.south",
        ("--bbox", "nan,10,40,20"): "region.bounding_box.south",
        ("--circle", "50,10,-5"): "region.circle.radius_meters",
        ("--cells", "0,16,0,0"): "region.cell_range.x_to",
    }
    for arguments, named in refused.items():
        run = run_tilecache(
            "coverage", "--zoom", 4, *arguments, socket_path=shared_daemon.socket_path
        )

        assert run.returncode == 4, arguments
        assert named in run.stderr
