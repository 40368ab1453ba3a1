"""No latitude is mirrored: rows are read as the source proves to count them, else refused."""

import json
import shutil
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.imports.inputs import INPUTS
from tests.imports.pictures import CELLS, cell_of
from tests.stored_tiles import list_stored
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import FoundTile, Source
from tilecache_daemon.ingest.schemes import Scheme
from tilecache_daemon.ingest.sources import open_source

UNCLEAR = "not clear whether its rows are counted"


def make_input(name: str, tmp_path: Path) -> Path:
    INPUTS[name](tmp_path / name)
    return tmp_path / name


def check_pictures(source: Source) -> None:
    """Every tile is found in the cell that its picture shows."""
    found = [tile for tile in source if isinstance(tile, FoundTile)]
    assert len(found) == len(CELLS)
    for tile in found:
        image = tile.image.read_bytes() if isinstance(tile.image, Path) else tile.image
        assert cell_of(image) == (tile.zoom, tile.x, tile.y)


@pytest.mark.parametrize(
    "name",
    [
        "rows-from-the-north",
        "gdal2tiles",
        "gdal2tiles-of-2012",
        "tile-map-in-metres",
        "metadata-says-tms",
        "metadata-says-xyz",
        "metadata-says-nothing",
        "metadata-and-tile-map-differ-bounds-decide",
        "bounds-say-tms",
        "bounds-that-are-none",
        "plain.mbtiles",
        "scheme-tms.mbtiles",
        "scheme-xyz-rows-tms.mbtiles",
        "scheme-xyz-rows-xyz.mbtiles",
        "bounds-of-the-world.mbtiles",
    ],
)
@pytest.mark.parametrize("zooms", [None, range(5, 6)], ids=["all", "low"])
def test_each_tile_is_found_where_its_picture_was_taken(
    name: str, zooms: range | None, tmp_path: Path
) -> None:
    path = make_input(name, tmp_path)
    source = open_source(path)

    check_pictures(source)
    # Which zoom levels are asked for does not change how rows are counted.
    assert open_source(path, zooms).scheme is source.scheme


@pytest.mark.parametrize(
    ("name", "true_scheme", "why"),
    [
        ("gdal2tiles-with-rows-from-the-north", Scheme.XYZ, "tilemapresource.xml: tms"),
        ("metadata-says-tms-bounds-say-xyz", Scheme.XYZ, "its bounds: xyz"),
        ("metadata-and-tile-map-differ", Scheme.TMS, "metadata.json: xyz"),
        ("bounds-of-elsewhere", Scheme.XYZ, "fit to its rows in neither way"),
        ("tile-map-that-is-no-xml", Scheme.TMS, "cannot be read as XML"),
        ("tile-map-that-expands-entities", Scheme.TMS, "cannot be read as XML"),
        ("metadata-that-is-no-json", Scheme.TMS, "cannot be read as JSON"),
        ("metadata-that-is-nested-deeply", Scheme.TMS, "cannot be read as JSON"),
        ("scheme-xyz-without-bounds.mbtiles", Scheme.XYZ, "its metadata: xyz"),
        ("bounds-say-xyz.mbtiles", Scheme.XYZ, "the format: tms, its bounds: xyz"),
        ("scheme-tms-bounds-say-xyz.mbtiles", Scheme.XYZ, "its bounds: xyz"),
        ("bounds-say-tms.pmtiles", Scheme.TMS, "the format: xyz, its bounds: tms"),
        ("bounds-mirrored.pmtiles", Scheme.XYZ, "its bounds: tms"),
    ],
)
def test_a_contradiction_is_refused_until_the_scheme_is_given(
    name: str, true_scheme: Scheme, why: str, tmp_path: Path
) -> None:
    path = make_input(name, tmp_path)

    with pytest.raises(SourceError, match=UNCLEAR) as failure:
        open_source(path)
    assert why in str(failure.value)
    assert "--scheme" in str(failure.value)
    check_pictures(open_source(path, scheme=true_scheme))


def test_tiles_of_another_projection_are_refused_whatever_the_scheme(tmp_path: Path) -> None:
    path = make_input("gdal2tiles-geodetic", tmp_path)
    for scheme in (None, *Scheme):
        with pytest.raises(SourceError, match="not in Web Mercator"):
            open_source(path, scheme=scheme)


def test_a_given_scheme_holds_where_nothing_is_said(tmp_path: Path) -> None:
    path = make_input("gdal2tiles", tmp_path)
    (path / "tilemapresource.xml").unlink()

    assert open_source(path).scheme is Scheme.XYZ
    check_pictures(open_source(path, scheme=Scheme.TMS))


def test_an_import_stores_a_tree_of_gdal2tiles_unmirrored(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    path = make_input("gdal2tiles", tmp_path)
    run = run_tilecache("import", path, "--json", socket_path=daemon.socket_path)

    assert run.returncode == 0
    assert json.loads(run.stdout)["scheme"] == "tms"
    stored = list_stored(daemon.client, range(5, 8))
    assert len(stored) == len(CELLS)
    for tile in stored:
        cell = tile.key.zoom, tile.key.x, tile.key.y
        assert cell_of((path / tile.file_path).read_bytes()) == cell
    text = run_tilecache("import", path, socket_path=daemon.socket_path).stdout
    assert "rows counted from the south (tms)" in text


def test_an_import_of_contradictory_rows_stores_nothing(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    path = make_input("bounds-say-xyz.mbtiles", tmp_path)
    run = run_tilecache("import", path, socket_path=daemon.socket_path)

    assert run.returncode == 2
    assert UNCLEAR in run.stderr
    assert list_stored(daemon.client, range(8)) == []
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    arguments = (path, "--scheme", "xyz")
    assert run_tilecache("import", *arguments, socket_path=daemon.socket_path).returncode == 0
    for tile in list_stored(daemon.client, range(8)):
        cell = tile.key.zoom, tile.key.x, tile.key.y
        assert cell_of((path.with_suffix("") / tile.file_path).read_bytes()) == cell
    shutil.rmtree(path.with_suffix(""))
