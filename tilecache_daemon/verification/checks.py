"""What is wrong with a file, by the rows that name it."""

import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import ListEvictionsRequest
from tilecache.v1.tile_metadata_store_pb2 import ListTilesRequest, TileMetadata
from tilecache_daemon.paging import read_pages

CALL_TIMEOUT_S: Final = 60
MAX_PATHS: Final = 1_000
"""Files that are looked up with one call."""
_MAX_REQUEST_BYTES: Final = 1_000_000
_READ_BYTES: Final = 1 << 20
_IMAGE: Final = re.compile(r".*\.(png|jpe?g|webp)", re.IGNORECASE | re.DOTALL)


class Problem(Enum):
    """What is wrong with a file."""

    MISSING = "missing"
    WRONG_SIZE = "wrong_size"
    WRONG_CONTENT = "wrong_content"
    UNREADABLE = "unreadable"
    """It is there, or may be, but cannot be read."""
    ORPHAN = "orphan"
    """An image that no tile names and that is not listed for removal."""


class Finding(NamedTuple):
    """A file with which something is wrong; one for each tile that names it."""

    problem: Problem
    file_path: str
    """Relative to the root. Names that are not UTF-8 have surrogates, as in `os.fsdecode`."""
    tile: TileMetadata | None = None
    found_bytes: int | None = None
    found_sha256: str | None = None
    reason: str | None = None
    """Why it cannot be read or removed."""
    age_s: float | None = None
    """How long an orphan has been where it is, whatever its modification time says."""
    identity: tuple[int, int] | None = None
    """The inode, and the time of the last change in nanoseconds, of an orphan that may be
    removed."""


class FileChecker:
    """Compares files below a root with the daemon's tiles, as both are at the moment."""

    def __init__(self, client: TileCacheClient, root: Path, *, with_content: bool) -> None:
        """`with_content`: read the files and compare their SHA-256."""
        self._client = client
        self._root = str(root)
        self._with_content = with_content
        self.aliases: Collection[str] = ()
        """Files that tiles name by other paths. They are no orphans."""

    def find(self, paths: Sequence[str]) -> list[Finding]:
        """What is wrong with some files now. Whatever is found is checked a second time, since a
        row and its file are not written at the same moment. Raises CallError."""
        suspects = list(dict.fromkeys(finding.file_path for finding in self._find_once(paths)))
        return list(self._find_once(suspects))

    def _find_once(self, paths: Sequence[str]) -> Iterator[Finding]:
        tiles: defaultdict[str, list[TileMetadata]] = defaultdict(list)
        for tile in self._find_tiles(paths):
            tiles[tile.file_path].append(tile)
        unnamed = [path for path in paths if path not in tiles and _IMAGE.fullmatch(path)]
        listed = self._find_listed(unnamed)
        for path in paths:
            if path.endswith("/"):
                yield from self._check_directory(path)
            elif path in tiles:
                yield from self._check_file(path, tiles[path])
            elif path not in listed and path not in self.aliases and _IMAGE.fullmatch(path):
                yield from self._check_orphan(path)

    def _check_file(self, path: str, tiles: Iterable[TileMetadata]) -> Iterator[Finding]:
        try:
            size_bytes, digest = self._read(path)
        except (FileNotFoundError, NotADirectoryError):
            yield from (Finding(Problem.MISSING, path, tile) for tile in tiles)
            return
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield from (Finding(Problem.UNREADABLE, path, tile, reason=reason) for tile in tiles)
            return
        for tile in tiles:
            if tile.HasField("disk_bytes") and tile.disk_bytes != size_bytes:
                yield Finding(Problem.WRONG_SIZE, path, tile, size_bytes, digest)
            elif digest and tile.content_sha256 not in ("", digest):
                yield Finding(Problem.WRONG_CONTENT, path, tile, size_bytes, digest)

    def _read(self, path: str) -> tuple[int, str | None]:
        """The size of a file, and its SHA-256 if contents are compared; raises ValueError for what
        is not a file below the root."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError("leads out of the root")
        full_path = f"{self._root}/{path}"
        status = os.stat(full_path)  # noqa: PTH116 -- a Path takes longer than the call
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if not self._with_content:
            return status.st_size, None
        size_bytes, digest = 0, sha256()
        # Not blocking, since it may be a pipe by now.
        with os.fdopen(os.open(full_path, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as file:
            # What is read once only shall not displace what others read.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_NOREUSE)
            while part := file.read(_READ_BYTES):
                size_bytes += len(part)
                digest.update(part)
        return size_bytes, digest.hexdigest()

    def _check_orphan(self, path: str) -> Iterator[Finding]:
        try:
            status = os.lstat(f"{self._root}/{path}")
        except FileNotFoundError:
            return
        except OSError as error:
            yield Finding(Problem.ORPHAN, path, reason=error.strerror)
            return
        # A copy may keep the modification time of the original.
        age_s = time.time() - status.st_ctime
        if self._ignores_case(path, status):
            reason = "the file system ignores case, so a tile may name it in another one"
            yield Finding(Problem.ORPHAN, path, None, status.st_size, reason=reason, age_s=age_s)
            return
        identity = (status.st_ino, status.st_ctime_ns)
        yield Finding(Problem.ORPHAN, path, None, status.st_size, age_s=age_s, identity=identity)

    def _ignores_case(self, path: str, status: os.stat_result) -> bool:
        try:
            other = os.lstat(f"{self._root}/{path.swapcase()}")
        except OSError:
            return False
        return os.path.samestat(status, other)

    def _check_directory(self, path: str) -> Iterator[Finding]:
        try:
            os.scandir(f"{self._root}/{path}").close()
        except FileNotFoundError:
            return
        except OSError as error:
            yield Finding(Problem.UNREADABLE, path, reason=error.strerror)

    def _find_tiles(self, paths: Sequence[str]) -> Iterator[TileMetadata]:
        """The tiles that name these files."""
        for batch in _storable(paths):
            request = ListTilesRequest(file_paths=batch)
            for page in read_pages(self._client.store.ListTiles, request, CALL_TIMEOUT_S):
                yield from page.tiles

    def _find_listed(self, paths: Sequence[str]) -> set[str]:
        """Which of these files are listed for removal."""
        listed: set[str] = set()
        for batch in _storable(paths):
            request = ListEvictionsRequest(file_paths=batch)
            for page in read_pages(self._client.admin.ListEvictions, request, CALL_TIMEOUT_S):
                listed.update(eviction.file_path for eviction in page.tiles)
        return listed


def _storable(paths: Sequence[str]) -> Iterator[list[str]]:
    """The paths that a tile can have, in batches that fit into a message."""
    storable = [path for path in paths if not path.endswith("/") and _is_utf8(path)]
    size = min(MAX_PATHS, max(1, _MAX_REQUEST_BYTES // (4 * max(map(len, storable), default=1))))
    for start in range(0, len(storable), size):
        yield storable[start : start + size]


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
