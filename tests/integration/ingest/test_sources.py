"""Each source yields every tile in it, and gives the reason for every refused one."""

import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import write as pmtiles_writer

from tests.imagery import cut_blue_marble, list_pyramid, write_mbtiles, write_pmtiles
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import (
    MISPLACED,
    UNREADABLE,
    Found,
    FoundTile,
    IgnoredFile,
    Refusal,
)
from tilecache_daemon.ingest.sources import open_source
from tilecache_daemon.ingest.unpacking import UnpackDirectory, UnpackingError

Cell = tuple[int, int, int]


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyramid")
    cut_blue_marble(path, 0, 3)
    return path


@pytest.fixture
def directory(pyramid: Path, tmp_path: Path) -> Path:
    """A copy of the pyramid, for the test to change."""
    return Path(shutil.copytree(pyramid, tmp_path / "tiles"))


def read_cells(source: Iterable[Found]) -> dict[Cell, bytes]:
    cells = {}
    for found in source:
        assert isinstance(found, FoundTile), found
        image = found.image
        content = image.read_bytes() if isinstance(image, Path) else image
        cells[found.zoom, found.x, found.y] = content
    return cells


def only_refusals(source: Iterable[Found]) -> dict[str, tuple[str, str]]:
    return {
        found.file: (found.reason, found.message) for found in source if isinstance(found, Refusal)
    }


def edit_mbtiles(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize("kind", ["tiles", "world.mbtiles", "world.pmtiles"])
def test_a_source_yields_every_cell_with_its_image(
    kind: str, pyramid: Path, tmp_path: Path
) -> None:
    path = tmp_path / kind
    write = {".mbtiles": write_mbtiles, ".pmtiles": write_pmtiles}.get(path.suffix)
    write(pyramid, path) if write else shutil.copytree(pyramid, path)
    source = open_source(path)

    expected = {(z, x, y): file.read_bytes() for z, x, y, file in list_pyramid(pyramid)}
    assert read_cells(source) == expected
    assert source.count() == len(expected) == 85


@pytest.mark.parametrize("kind", ["tiles", "world.mbtiles", "world.pmtiles"])
def test_only_the_requested_zooms_are_yielded_and_counted(
    kind: str, pyramid: Path, tmp_path: Path
) -> None:
    path = tmp_path / kind
    write = {".mbtiles": write_mbtiles, ".pmtiles": write_pmtiles}.get(path.suffix)
    write(pyramid, path) if write else shutil.copytree(pyramid, path)
    source = open_source(path, range(1, 3))

    assert {zoom for zoom, _, _ in read_cells(source)} == {1, 2}
    assert source.count() == 4 + 16


def test_files_that_are_not_named_like_tiles_are_ignored(directory: Path) -> None:
    for name in (".DS_Store", "metadata.json", "1/._0.jpg", "2/1/.1.jpg.part", "README"):
        (directory / name).write_bytes(b"{}")
    source = open_source(directory)

    ignored = {found.file for found in source if isinstance(found, IgnoredFile)}
    assert ignored == {".DS_Store", "metadata.json", "1/._0.jpg", "2/1/.1.jpg.part", "README"}
    assert source.count() == 85


@pytest.mark.parametrize(
    ("name", "reason", "why"),
    [
        ("a/b/c.png", MISPLACED, "not at {zoom}/{x}/{y}"),
        ("4/77.jpg", MISPLACED, "not at {zoom}/{x}/{y}"),
        ("03/1/1.jpg", MISPLACED, "not at {zoom}/{x}/{y}"),
        ("1/1/-1.jpg", MISPLACED, "not at {zoom}/{x}/{y}"),
        ("5/99/1.png", "INVALID_REQUEST", "x is 99"),
        ("5/1/32.webp", "INVALID_REQUEST", "y is 32"),
        ("23/1/1.JPEG", "INVALID_REQUEST", "zoom is 23"),
        ("99999/1/1.png", "INVALID_REQUEST", "zoom is 99999"),
    ],
)
def test_an_image_at_an_invalid_path_is_refused(
    directory: Path, name: str, reason: str, why: str
) -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(directory / "0/0/0.jpg", directory / name)
    refused = only_refusals(open_source(directory))

    assert list(refused) == [name]
    assert refused[name][0] == reason
    assert why in refused[name][1]


def test_links_are_followed_within_the_directory_only(directory: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    shutil.copy(directory / "0/0/0.jpg", secret)
    (directory / "4/0").mkdir(parents=True)
    (directory / "4/0/0.jpg").symlink_to("../../0/0/0.jpg")
    (directory / "4/0/1.jpg").symlink_to(secret)
    (directory / "4/0/2.jpg").symlink_to("../../../secret.jpg")
    (directory / "4/0/3.jpg").symlink_to("nowhere.jpg")
    (directory / "4/1").symlink_to(directory / "3")
    found = list(open_source(directory))

    tiles = {tile.file for tile in found if isinstance(tile, FoundTile)}
    assert "4/0/0.jpg" in tiles
    assert set(only_refusals(found)) == {"4/0/1.jpg", "4/0/2.jpg", "4/0/3.jpg", "4/1"}


def test_a_pipe_does_not_block(directory: Path) -> None:
    os.mkfifo(directory / "1/1/7.png")

    refused = only_refusals(open_source(directory))
    assert refused == {"1/1/7.png": (UNREADABLE, "not a regular file")}


def test_rows_without_a_cell_or_an_image_are_refused_and_the_others_yielded(
    pyramid: Path, tmp_path: Path
) -> None:
    path = tmp_path / "world.mbtiles"
    write_mbtiles(pyramid, path)
    edit_mbtiles(
        path,
        "INSERT INTO tiles VALUES (NULL, 0, 0, x'00'), ('five', 1, 1, x'00')",
        "INSERT INTO tiles VALUES (3, 8, 0, x'00'), (3, 0, 8, x'00'), (99, 0, 0, x'00')",
        "INSERT INTO tiles VALUES (4, 0, 0, NULL)",
    )
    source = open_source(path)
    refused = only_refusals(source)

    assert len(refused) == 6
    assert refused["world.mbtiles:3/8/0"][1].startswith("x is 8")
    assert refused["world.mbtiles:3/0/8"][1].startswith("y is 8")
    assert refused["world.mbtiles:99/0/0"][1].startswith("zoom is 99")
    assert refused["world.mbtiles:4/0/0"] == (UNREADABLE, "the row has no image")
    assert sum(isinstance(found, FoundTile) for found in source) == 85
    assert source.count() == 85 + 6


def test_one_image_of_many_cells_in_a_pmtiles_archive_is_yielded_for_each(
    pyramid: Path, tmp_path: Path
) -> None:
    """Archives store a run of equal tiles, such as the sea, as one entry."""
    path = tmp_path / "sea.pmtiles"
    sea = (pyramid / "2/0/3.jpg").read_bytes()
    with pmtiles_writer(path) as writer:
        for tile_id in range(zxy_to_tileid(2, 0, 0), zxy_to_tileid(3, 0, 0)):
            writer.write_tile(tile_id, sea)
        writer.finalize({"tile_type": TileType.JPEG, "tile_compression": Compression.NONE}, {})
    source = open_source(path)

    assert read_cells(source) == {(2, x, y): sea for x in range(4) for y in range(4)}
    assert source.count() == 16


def write_vector_pmtiles(path: Path) -> None:
    with pmtiles_writer(path) as writer:
        writer.write_tile(0, b"vectors")
        writer.finalize({"tile_type": TileType.MVT, "tile_compression": Compression.GZIP}, {})


def write_vector_mbtiles(pyramid: Path, path: Path) -> None:
    write_mbtiles(pyramid, path)
    edit_mbtiles(path, "UPDATE metadata SET value = 'pbf' WHERE name = 'format'")


def write_foreign_sqlite(path: Path) -> None:
    edit_mbtiles(path, "CREATE TABLE songs (title text)")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def corrupt(path: Path, offset: int, garbage: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(garbage)


def corrupt_pages(path: Path) -> None:
    corrupt(path, path.stat().st_size // 2, b"\xa5" * 16384)


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("a.mbtiles", lambda _, path: path.write_bytes(b"not SQLite" * 999), "not a database"),
        ("b.mbtiles", lambda _, path: path.write_bytes(b""), "no table `tiles`"),
        ("c.mbtiles", lambda _, path: write_foreign_sqlite(path), "no table `tiles`"),
        ("d.mbtiles", lambda p, path: (write_mbtiles(p, path), truncate(path)), "d.mbtiles"),
        ("e.mbtiles", lambda p, path: (write_mbtiles(p, path), corrupt_pages(path)), "e.mbtiles"),
        ("f.mbtiles", write_vector_mbtiles, "vector tiles"),
        ("g.pmtiles", lambda _, path: path.write_bytes(b"PMTiles"), "not a PMTiles archive"),
        ("h.pmtiles", lambda _, path: path.write_bytes(b"x" * 999), "not a PMTiles archive"),
        ("i.pmtiles", lambda p, path: (write_pmtiles(p, path), truncate(path)), "truncated"),
        (
            "j.pmtiles",
            lambda p, path: (write_pmtiles(p, path), corrupt(path, 7, b"\2")),
            "version 3",
        ),
        (
            "k.pmtiles",
            lambda p, path: (write_pmtiles(p, path), corrupt(path, 150, b"\0" * 60)),
            "damaged",
        ),
        ("l.pmtiles", lambda _, path: write_vector_pmtiles(path), "MVT tiles"),
        ("m.zip", lambda _, path: path.write_bytes(b"PK"), "neither a directory nor"),
    ],
)
def test_a_source_of_another_format_or_damaged_is_refused_as_a_whole(
    name: str, make: object, why: str, pyramid: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    assert callable(make)
    make(pyramid, path)

    with pytest.raises(SourceError, match=why) as failure:
        open_source(path)
    assert str(path) in str(failure.value)


def test_an_unpacked_image_never_overwrites_another(tmp_path: Path) -> None:
    unpacking = UnpackDirectory(tmp_path / "tiles")
    first, written = unpacking.write("5/1/2.jpg", "ab" * 32, b"first")
    second, written_too = unpacking.write("5/1/2.jpg", "cd" * 32, b"second")

    assert (first, second) == (
        tmp_path / "tiles/5/1/2.jpg",
        tmp_path / "tiles/5/1/2.cdcdcdcdcdcdcdcd.jpg",
    )
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    assert written
    assert written_too
    assert unpacking.write("5/1/2.jpg", "cd" * 32, b"second") == (second, False)
    unpacking.close()


def test_a_file_of_an_interrupted_write_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "5/1").mkdir(parents=True)
    (tmp_path / "5/1/.2.jpg.part").write_bytes(b"hal")
    unpacking = UnpackDirectory(tmp_path)
    path, _ = unpacking.write("5/1/2.jpg", "ab" * 32, b"whole")

    assert path.read_bytes() == b"whole"
    assert [file.name for file in (tmp_path / "5/1").iterdir()] == ["2.jpg"]
    unpacking.close()


def test_two_imports_do_not_unpack_into_one_directory(tmp_path: Path) -> None:
    first = UnpackDirectory(tmp_path)
    with pytest.raises(UnpackingError, match="another import"):
        UnpackDirectory(tmp_path)
    first.close()
    UnpackDirectory(tmp_path).close()
