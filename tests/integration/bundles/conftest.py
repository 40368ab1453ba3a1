"""Two daemons with tiles directories, one of which has tiles."""

import json
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.small_disk import small_disk
from tests.tiles import bulk_insert, tile
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata

__all__ = ["small_disk"]

CARRIED = (
    "tile_uuid, location_hash, zoom, x, y, source, flight_id, content_sha256, disk_bytes, "
    "tile_size_pixels, tile_size_meters, latitude, longitude, file_path, captured_at, uploaded_at, "
    "tile_quality_metadata::text"
)


class Cache(DaemonProcess):
    """A daemon with a tiles directory."""

    def __init__(self, directory: Path, dsn: str, tiles: Path, **settings: object) -> None:
        tiles.mkdir(exist_ok=True)
        super().__init__(directory, dsn=dsn, tiles_directory=tiles, **settings)
        self.dsn = dsn
        self.tiles = tiles

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Runs a command against this daemon."""
        return run_tilecache(
            *arguments, socket_path=self.socket_path, admin_socket_path=self.admin_socket_path
        )

    def rows(self) -> list[tuple[Any, ...]]:
        """The carried fields of all tiles."""
        with psycopg.connect(self.dsn) as sql:
            return sql.execute(f"SELECT {CARRIED} FROM tiles ORDER BY tile_uuid").fetchall()

    def files(self) -> dict[str, bytes]:
        """The content of the files in the tiles directory, by path."""
        return {
            path.relative_to(self.tiles).as_posix(): path.read_bytes()
            for path in self.tiles.rglob("*")
            if path.is_file()
        }

    def store(self, key: TileKey, image: bytes = b"", **fields: Any) -> TileMetadata:
        """Stores a tile with its file."""
        message = prepare(self.tiles, key, image, **fields)
        (answer,) = bulk_insert(self.client, [message])
        assert not answer.refused
        return message


def prepare(root: Path, key: TileKey, image: bytes = b"", **fields: Any) -> TileMetadata:
    """A tile whose file is written."""
    image = image or f"image of {key.zoom}/{key.x}/{key.y} {key.source}".encode()
    message = tile(
        key, **{"content_sha256": sha256(image).hexdigest(), "disk_bytes": len(image)} | fields
    )
    path = root / message.file_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return message


def import_json(cache: Cache, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of an import."""
    run = cache.run("import", *arguments, "--json")
    assert run.stdout, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return run.returncode, report


@pytest.fixture
def aircraft(database: str, short_directory: Path, tmp_path: Path) -> Iterator[Cache]:
    directory = short_directory / "a"
    directory.mkdir()
    with Cache(directory, database, tmp_path / "aircraft") as cache:
        yield cache  # type: ignore[misc]


@pytest.fixture
def ground(other_database: str, short_directory: Path, tmp_path: Path) -> Iterator[Cache]:
    directory = short_directory / "g"
    directory.mkdir()
    with Cache(directory, other_database, tmp_path / "ground") as cache:
        yield cache  # type: ignore[misc]
