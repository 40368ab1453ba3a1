"""The commands of docs/operating.md, one after the other, with real tiles and a real plan."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_process import TILECACHE, DaemonProcess, daemon_environment, run_tilecache
from tests.imagery import cut_blue_marble
from tests.integration.cli.pairs import stored
from tests.tiles import ONBOARD, insert, random_flight, tile, tile_key

GUIDE = Path(__file__).parents[3] / "docs/operating.md"
PLAN = Path(__file__).parents[2] / "plans/survey.plan"
ZOOMS = (12, 14)
STORED = (50.28, 30.55, 50.45, 30.70)
"""The west of the route. The rest is fetched."""
WHOLE = (50.28, 30.55, 50.45, 30.83)
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


GROUND = (50.2, 30.4, 50.25, 30.5)
"""What only the ground has."""


@pytest.fixture
def daemon(database: str, short_directory: Path, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon whose tiles directory is that of the commands."""
    with DaemonProcess(
        short_directory, dsn=database, tiles_directory=tmp_path / "tiles"
    ) as process:
        yield process


@pytest.fixture
def ground(second_database: str, tmp_path: Path) -> Iterator[DaemonProcess]:
    """The daemon of the ground, whose socket is in the workplace."""
    with (
        tempfile.TemporaryDirectory(prefix="tilecache-") as directory,
        DaemonProcess(Path(directory), dsn=second_database) as process,
    ):
        (tmp_path / "ground.sock").symlink_to(process.socket_path)
        tiles = tmp_path / "ground-tiles"
        cut_blue_marble(tiles, *ZOOMS, GROUND)
        imported = run_tilecache("import", tiles, socket_path=process.socket_path)
        assert imported.returncode == 0, imported.stderr
        yield process


@pytest.fixture
def workplace(tmp_path: Path, daemon: DaemonProcess, ground: DaemonProcess) -> Path:
    """A directory with the plan and what was fetched, beside a daemon that has other tiles."""
    shutil.copy(PLAN, tmp_path)
    before, fetched = tmp_path / "tiles" / "before", tmp_path / "tiles" / "fetched"
    cut_blue_marble(fetched, *ZOOMS, WHOLE)
    cut_blue_marble(before, *ZOOMS, STORED)
    for path in before.rglob("*.*"):
        (fetched / path.relative_to(before)).unlink(missing_ok=True)
    cut_blue_marble(before, 4, 5)
    (tmp_path / "fetched").symlink_to(fetched)
    run = subprocess.run(
        [TILECACHE, "import", before],
        env=daemon_environment(socket_path=daemon.socket_path),
        check=False,
    )
    assert run.returncode == 0
    return tmp_path


def test_the_commands_run_one_after_the_other(
    workplace: Path, daemon: DaemonProcess, ground: DaemonProcess
) -> None:
    on_the_ground = stored(ground.client)
    made = tile(
        tile_key(16, 38_360, 22_080, ONBOARD, random_flight()),
        "made in flight",
        disk_bytes=len("made in flight"),
        file_path="made.jpg",
    )
    (workplace / "tiles" / made.file_path).write_text("made in flight")
    insert(daemon.client, made)

    environment = daemon_environment(
        socket_path=daemon.socket_path, admin_socket_path=daemon.admin_socket_path
    )
    environment["STATE_DIRECTORY"] = str(workplace / "state")
    environment["PATH"] = f"{TILECACHE.parent}:{environment['PATH']}"
    script = "".join(f"echo '### {number}'\n{block}" for number, block in enumerate(BLOCKS))

    ran = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = re.split(r"### \d+\n", ran.stdout)[1:]
    before, after = (
        float(re.findall(r"all .*?([\d.]+)%", shown[index])[0])
        for index, block in enumerate(BLOCKS)
        if re.search(r"coverage .*--on \"\$DAY\"$", block, re.MULTILINE)
    )
    assert before < 100 == after
    for name in ("route.png", "area.png", "fetch.geojson"):
        assert (workplace / name).stat().st_size > 0
    fetched = (workplace / "fetch.csv").read_text().splitlines()
    assert fetched[0].startswith("zoom,x,y,source,tile_uuid")
    assert {line.rpartition(",")[2] for line in fetched[1:]} == {"missing"}
    assert "next-flight" in ran.stdout
    assert "Evicted" in ran.stdout
    assert re.search(r"Removed [1-9]\d* files; 0 remain on the list\.", ran.stdout)
    assert re.search(r"corrected +│ +[\d,]+", ran.stdout)
    assert not list((workplace / "tiles" / "before" / "5").rglob("*.jpg"))
    (summary,) = map(json.loads, (workplace / "findings.jsonl").read_text().splitlines())
    assert summary["tile_count"] > summary["left_count"] == 0
    here = stored(daemon.client)
    for tile_uuid in on_the_ground:
        assert (workplace / "tiles" / here[tile_uuid].file_path).exists()
    assert stored(daemon.client, pending_upload=True) == {}
    assert made.content_sha256 in {each.content_sha256 for each in stored(ground.client).values()}
    assert "Exported" in ran.stdout
    for name in ("copies/everything/bundle.json", "copies/route.tar", "route.mbtiles"):
        assert (workplace / name).exists()


def test_every_form_of_a_region_stands_in_the_guide() -> None:
    help_text = subprocess.run(
        [TILECACHE, "coverage", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in ("--route", "--area", "--circle", "--bbox", "--cells", "--on", "--zoom"):
        assert option in help_text
        assert option in GUIDE.read_text()
