"""Two daemons with tiles directories, one of which has tiles."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import empty_database
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

    def empty(self) -> None:
        """Empties the database and the tiles directory."""
        with psycopg.connect(self.dsn, autocommit=True) as sql:
            empty_database(sql)
        for path in self.tiles.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

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


@pytest.fixture(scope="module")
def module_aircraft(
    shared_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cache]:
    with running_cache(shared_database, tmp_path_factory.mktemp("aircraft") / "tiles") as cache:
        yield cache


@pytest.fixture(scope="module")
def module_ground(
    second_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cache]:
    with running_cache(second_database, tmp_path_factory.mktemp("ground") / "tiles") as cache:
        yield cache


@pytest.fixture
def aircraft(module_aircraft: Cache) -> Cache:
    """Without tiles."""
    module_aircraft.empty()
    return module_aircraft


@pytest.fixture
def ground(module_ground: Cache) -> Cache:
    """Without tiles."""
    module_ground.empty()
    return module_ground


@contextmanager
def running_cache(dsn: str, tiles: Path) -> Iterator[Cache]:
    """A daemon with a tiles directory."""
    with (
        tempfile.TemporaryDirectory(prefix="tilecache-") as directory,
        Cache(Path(directory), dsn, tiles) as cache,
    ):
        yield cache  # type: ignore[misc]
