"""Odd names, files that are no tiles, second images and odd rows: each costs itself alone."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.imports.inputs import write_mbtiles, write_tree
from tests.imports.pictures import BOUNDS, CELLS, cell_of, flipped, picture
from tests.imports.pmtiles_archives import plain
from tests.stored_tiles import list_stored
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import (
    MISPLACED,
    SECOND_IMAGE,
    UNREADABLE,
    FoundTile,
    IgnoredFile,
    Refusal,
)
from tilecache_daemon.ingest.sources import open_source

LATIN_1 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tiles"
    write_tree(path, "xyz")
    return path


def refusals(path: Path, zooms: range | None = None) -> dict[str, str]:
    found = open_source(path, zooms)
    return {item.file: item.reason for item in found if isinstance(item, Refusal)}


def images(path: Path, zooms: range | None = None) -> dict[tuple[int, int, int], bytes | Path]:
    found = open_source(path, zooms)
    return {
        (tile.zoom, tile.x, tile.y): tile.image for tile in found if isinstance(tile, FoundTile)
    }


def test_names_that_are_not_utf8_are_reported_and_cost_themselves_alone(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    tree = tmp_path / LATIN_1
    write_tree(tree, "xyz")
    (tree / f"{LATIN_1}.txt").write_text("notes")
    (tree / f"{LATIN_1}.png").write_bytes(picture(CELLS[0]))
    (tree / "\x1b[31mred.png").write_bytes(picture(CELLS[0]))
    run = run_tilecache("import", tree, "--json", socket_path=daemon.socket_path)

    report = json.loads(run.stdout)
    assert (run.returncode, report["inserted_count"]) == (1, len(CELLS)), run.stderr
    assert report["source"].endswith("caf\\xe9")
    assert report["ignored"] == ["caf\\xe9.txt"]
    assert [item["file"] for item in report["refused"]] == ["\\x1b[31mred.png", "caf\\xe9.png"]
    text = run_tilecache("import", tree, socket_path=daemon.socket_path)
    assert "caf\\xe9.png" in text.stdout
    assert "\x1b" not in text.stdout
    # Paths that would be stored must be UTF-8.
    run = run_tilecache("import", tree, "--root", tmp_path, socket_path=daemon.socket_path)
    assert run.returncode == 2
    assert "UTF-8" in run.stderr


@pytest.mark.parametrize("kind", ["mbtiles", "pmtiles"])
def test_an_archive_whose_name_is_not_utf8_is_imported(
    kind: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    path = tmp_path / f"{LATIN_1}.{kind}"
    write_mbtiles(path, "tms") if kind == "mbtiles" else path.write_bytes(plain())
    run = run_tilecache("import", path, "--json", socket_path=daemon.socket_path)

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["inserted_count"] == len(CELLS)


def test_what_is_no_tile_costs_no_exit_code(daemon: DaemonProcess, tree: Path) -> None:
    directories = ("lost+found", "6/37/@eaDir", ".Trash-1000", "$RECYCLE.BIN", "__MACOSX")
    for name in directories:
        (tree / name).mkdir()
        (tree / name / "thumbnail.png").write_bytes(picture(CELLS[0]))
    files = ("Thumbs.db", "6/37/._21.png", "README.txt", "7/75/42.png.aux.xml")
    for name in files:
        (tree / name).write_text("x")
    run = run_tilecache("import", tree, "--json", socket_path=daemon.socket_path)
    report = json.loads(run.stdout)

    assert (run.returncode, report["inserted_count"]) == (0, len(CELLS))
    assert set(report["ignored"]) == {*files, *(f"{name}/" for name in directories)}


def test_a_system_directory_is_not_entered(tree: Path) -> None:
    """It may be unreadable: a refusal would cost an exit code."""
    (tree / "lost+found").mkdir(mode=0)

    assert not refusals(tree)
    ignored = [item.file for item in open_source(tree) if isinstance(item, IgnoredFile)]
    assert ignored == ["lost+found/"]


def test_of_two_images_of_a_cell_the_same_one_is_imported_each_time(tree: Path) -> None:
    """PNG before JPEG before WebP, and normal before double resolution."""
    column = tree / "6/37"
    for name in ("21@2x.png", "21.jpg", "21.webp", "20@2x.webp", "19@2x.jpg"):
        (column / name).write_bytes(picture((6, 37, 21)))
    (column / "20.png").rename(column / "20.jpeg")
    found = images(tree)

    assert found[6, 37, 21] == column / "21.png"
    assert found[6, 37, 20] == column / "20.jpeg"
    assert found[6, 37, 19] == column / "19@2x.jpg"
    assert refusals(tree) == {
        f"6/37/{name}": SECOND_IMAGE for name in ("20@2x.webp", "21.jpg", "21.webp", "21@2x.png")
    }
    why = [item.message for item in open_source(tree) if isinstance(item, Refusal)]
    assert "of which 20.jpeg is imported" in why[0]
    assert open_source(tree).count() == len(CELLS) + 1 + 4


def test_a_zoom_that_is_not_asked_for_is_not_entered(tree: Path) -> None:
    shutil.move(tree / "7/75", tree / "7/not-a-column")

    assert set(refusals(tree).values()) == {MISPLACED}
    assert not refusals(tree, range(7))
    assert len(images(tree, range(7))) == 3


def test_numbers_as_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "text.mbtiles"
    write_mbtiles(
        path,
        "tms",
        "UPDATE tiles SET zoom_level = '7' WHERE zoom_level = 7",
        "UPDATE tiles SET tile_row = CAST(tile_row AS TEXT), tile_column = tile_column + 0.0",
    )

    assert set(images(path)) == set(CELLS)
    assert set(images(path, range(7))) == {cell for cell in CELLS if cell[0] < 7}
    assert set(images(path, range(7, 8))) == {cell for cell in CELLS if cell[0] == 7}
    assert open_source(path, range(7, 8)).count() == 2


def test_bounds_are_compared_with_rows_that_are_text(tmp_path: Path) -> None:
    path = tmp_path / "text.mbtiles"
    statement = "UPDATE tiles SET zoom_level = zoom_level || '', tile_row = tile_row || ''"
    write_mbtiles(path, "xyz", statement, bounds=BOUNDS)
    with pytest.raises(SourceError, match="its bounds: xyz"):
        open_source(path)


@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE tiles RENAME TO Old", 'CREATE VIEW "TILES" AS SELECT * FROM Old'],
        [
            "CREATE TABLE map AS SELECT zoom_level, tile_column, tile_row, rowid AS tile_id"
            " FROM tiles",
            "CREATE TABLE images AS SELECT rowid AS tile_id, tile_data FROM tiles",
            "DROP TABLE tiles",
        ],
        ["ALTER TABLE tiles RENAME COLUMN zoom_level TO ZOOM_LEVEL", "DROP TABLE metadata"],
    ],
    ids=["capitals", "map-and-images", "columns"],
)
def test_other_spellings_of_the_tables_are_read(statements: list[str], tmp_path: Path) -> None:
    path = tmp_path / "spelt.mbtiles"
    write_mbtiles(path, "tms", *statements)

    found = images(path)
    assert set(found) == set(CELLS)
    for cell, image in found.items():
        assert isinstance(image, bytes)
        assert cell_of(image) == cell


def test_an_odd_row_costs_that_row(tmp_path: Path) -> None:
    path = tmp_path / "odd.mbtiles"
    write_mbtiles(
        path,
        "tms",
        "INSERT INTO tiles VALUES (NULL, 0, 0, x'00'), (5, 1.5, 1, x'00')",
        "INSERT INTO tiles VALUES ('seven', 1, 2, x'00'), (4, 1, '99999999999999999999', x'00')",
        "INSERT INTO tiles VALUES (4, 0, 0, NULL), (4, 0, -1, x'00'), (4, 1, 1, 12)",
        f"INSERT INTO tiles VALUES (4, 2, 2, zeroblob({65 * 1024 * 1024}))",
    )
    found = refusals(path)

    assert list(found.values()).count(MISPLACED) == 4
    assert list(found.values()).count(UNREADABLE) == 3
    assert found["odd.mbtiles:4/0/-1"] == "INVALID_REQUEST"
    assert set(images(path)) == set(CELLS)
    assert open_source(path).count() == len(CELLS) + 8


def test_of_two_rows_of_a_cell_the_second_is_a_conflict(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    path = tmp_path / "twice.mbtiles"
    write_mbtiles(path, "tms")
    zoom, x, row = flipped(CELLS[0])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "INSERT INTO tiles VALUES (?, ?, ?, ?)", (zoom, x, row, picture((1, 2, 3)))
        )
    run = run_tilecache("import", path, "--json", socket_path=daemon.socket_path)
    report = json.loads(run.stdout)

    assert (run.returncode, report["inserted_count"]) == (1, len(CELLS))
    assert [item["reason"] for item in report["refused"]] == ["CONTENT_CONFLICT"]
    [stored] = list_stored(daemon.client, range(5, 6))
    image = (path.with_suffix("") / stored.file_path).read_bytes()
    assert cell_of(image) == CELLS[0]
