"""Small inputs for `tilecache import`, each named for what is unusual about it.

`python -m tests.imports.inputs DIRECTORY` writes all of them.
"""

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tests.imports.pictures import BOUNDS, CELLS, Cell, flipped, picture
from tests.imports.pmtiles_archives import HOSTILE, LEGAL, MIRRORED, UNSUPPORTED

Make = Callable[[Path], None]

_TILE_MAP = """<?xml version="1.0" encoding="utf-8"?>
<TileMap version="1.0.0" tilemapservice="http://tms.osgeo.org/1.0.0">
  <Title>area.tif</Title>
  <SRS>{srs}</SRS>
  <BoundingBox minx="{box[0]}" miny="{box[1]}" maxx="{box[2]}" maxy="{box[3]}"/>
  <TileSets profile="{profile}"><TileSet href="7" order="7"/></TileSets>
</TileMap>
"""


def stored_cells(scheme: str) -> Iterator[tuple[Cell, bytes]]:
    """The numbers under which a source with that scheme has each tile, and its image."""
    for cell in CELLS:
        yield (flipped(cell) if scheme == "tms" else cell), picture(cell)


def write_tree(path: Path, scheme: str, **files: str) -> None:
    """A directory of tiles, with further files; `__` in their names is a dot."""
    for (zoom, x, row), image in stored_cells(scheme):
        file = path / f"{zoom}/{x}/{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)


def tile_map(bounds: str = BOUNDS, profile: str = "mercator", srs: str = "EPSG:3857") -> str:
    """The tilemapresource.xml that gdal2tiles writes."""
    box = bounds.split(",")
    if srs == "EPSG:900913":
        box = [box[index] for index in (1, 0, 3, 2)]
    return _TILE_MAP.format(srs=srs, box=box, profile=profile)


def write_mbtiles(path: Path, rows: str, /, *statements: str, **metadata: Any) -> None:
    """An MBTiles file with these metadata, changed by some statements."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE metadata (name, value)")
        database.execute("CREATE TABLE tiles (zoom_level, tile_column, tile_row, tile_data)")
        database.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
        database.executemany(
            "INSERT INTO tiles VALUES (?, ?, ?, ?)",
            ((*cell, image) for cell, image in stored_cells(rows)),
        )
        for statement in statements:
            database.execute(statement)


def _tree(scheme: str, **files: str) -> Make:
    return partial(write_tree, scheme=scheme, **files)


def _mbtiles(rows: str, /, *statements: str, **metadata: Any) -> Make:
    return lambda path: write_mbtiles(path, rows, *statements, **metadata)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


INPUTS: dict[str, Make] = {
    "rows-from-the-north": _tree("xyz"),
    "gdal2tiles": _tree("tms", tilemapresource__xml=tile_map()),
    "gdal2tiles-of-2012": _tree("tms", tilemapresource__xml=tile_map(srs="EPSG:900913")),
    "gdal2tiles-with-rows-from-the-north": _tree("xyz", tilemapresource__xml=tile_map()),
    "tile-map-in-metres": _tree(
        "tms",
        tilemapresource__xml=tile_map("3443946.7,6261721.4,3757032.8,6887893.5"),
    ),
    "gdal2tiles-geodetic": _tree(
        "tms", tilemapresource__xml=tile_map(profile="geodetic", srs="EPSG:4326")
    ),
    "tile-map-that-is-no-xml": _tree("tms", tilemapresource__xml="<TileMap"),
    "tile-map-that-expands-entities": _tree(
        "tms",
        tilemapresource__xml='<!DOCTYPE a [<!ENTITY b "b">]><TileMap>&b;</TileMap>',
    ),
    "metadata-says-tms": _tree("tms", metadata__json='{"scheme": "tms"}'),
    "metadata-says-xyz": _tree("xyz", metadata__json='{"scheme": "xyz"}'),
    "metadata-says-nothing": _tree("xyz", metadata__json='{"name": "Ukraine"}'),
    "metadata-says-tms-bounds-say-xyz": _tree(
        "xyz", metadata__json=json.dumps({"scheme": "tms", "bounds": BOUNDS})
    ),
    "metadata-and-tile-map-differ": _tree(
        "tms",
        metadata__json='{"scheme": "xyz"}',
        tilemapresource__xml=tile_map(srs="EPSG:900913"),
    ),
    "metadata-and-tile-map-differ-bounds-decide": _tree(
        "tms", metadata__json='{"scheme": "xyz"}', tilemapresource__xml=tile_map()
    ),
    "bounds-say-tms": _tree("tms", metadata__json=json.dumps({"bounds": BOUNDS.split(",")})),
    "bounds-of-elsewhere": _tree("xyz", metadata__json=json.dumps({"bounds": "0,-10,20,10"})),
    "bounds-that-are-none": _tree("xyz", metadata__json=json.dumps({"bounds": [1, "a", None, 4]})),
    "metadata-that-is-no-json": _tree("tms", metadata__json='{"scheme": "tm'),
    "metadata-that-is-nested-deeply": _tree("tms", metadata__json="[" * 100_000),
    "plain.mbtiles": _mbtiles("tms"),
    "scheme-tms.mbtiles": _mbtiles("tms", scheme="tms", bounds=BOUNDS),
    "scheme-xyz-rows-tms.mbtiles": _mbtiles("tms", scheme="xyz", bounds=BOUNDS),
    "scheme-xyz-rows-xyz.mbtiles": _mbtiles("xyz", scheme="xyz", bounds=BOUNDS),
    "scheme-xyz-without-bounds.mbtiles": _mbtiles("xyz", scheme="xyz"),
    "bounds-say-xyz.mbtiles": _mbtiles("xyz", bounds=BOUNDS),
    "scheme-tms-bounds-say-xyz.mbtiles": _mbtiles("xyz", scheme="tms", bounds=BOUNDS),
    "bounds-of-the-world.mbtiles": _mbtiles("tms", bounds="-180,-85.0511,180,85.0511"),
}

_PMTILES = (
    LEGAL | MIRRORED | {name: content for name, (content, _) in (UNSUPPORTED | HOSTILE).items()}
)
INPUTS |= {name: partial(_write, content=content) for name, content in _PMTILES.items()}


def make_inputs(directory: Path) -> None:
    """Writes every input to a directory that is empty or new."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in INPUTS.items():
        make(directory / name)


if __name__ == "__main__":
    make_inputs(Path(sys.argv[1]))
