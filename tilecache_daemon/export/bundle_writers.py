"""Writes bundles: directories, which can be continued, and .tar files."""

import fcntl
import os
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from tilecache_daemon.export.exporter import ExportedTile, TileWriter
from tilecache_daemon.ingest.bundle import is_bundle
from tilecache_daemon.ingest.bundle_format import (
    FLIGHTS,
    HEADER,
    IMAGES,
    POLICY,
    TILES,
    UNFINISHED_TILES,
    Header,
    pack_header,
    pack_tile,
)
from tilecache_daemon.ingest.image_store import ImageStore, write_durably

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class TargetError(Exception):
    """The target cannot be written to. The message names it."""


class BundleWriter(TileWriter, Protocol):
    """A bundle that is being written."""

    def finish(self, header: Header, flights: Iterable[bytes], policy: Iterable[bytes]) -> None:
        """Completes the bundle, durably, with lines of its lists; raises OSError or
        UnpackingError."""

    def close(self) -> None:
        """Leaves a bundle that is not finished incomplete."""


class DirectoryWriter:
    """Writes a directory. In one that an earlier export has left incomplete, the images that are
    there already are kept."""

    def __init__(self, target: Path) -> None:
        """Raises TargetError if there is something else, StoreError if another export writes
        there."""
        self._target = target
        try:
            target.mkdir(parents=True, exist_ok=True)
            if (target / HEADER).exists():
                raise TargetError(f"{target}: is a complete bundle already")
            if not is_bundle(target) and any(target.iterdir()):
                raise TargetError(f"{target}: is neither empty nor an incomplete bundle")
            (target / UNFINISHED_TILES).touch()
            (target / IMAGES).mkdir(exist_ok=True)
        except OSError as error:
            raise TargetError(f"{error.filename or target}: {error.strerror}") from error
        self._images = ImageStore(target / IMAGES)
        # Only now: the store excludes other exports, which would write the same list.
        self._tiles: BinaryIO = (target / UNFINISHED_TILES).open("wb")

    def write_image(self, tile: ExportedTile) -> None:
        metadata = tile.metadata
        arguments = metadata.file_path, metadata.content_sha256, tile.image
        stored = self._images.store(*arguments)
        if stored.file_path != metadata.file_path:
            # Since an interrupted export, the tile was replaced.
            self._images.undo(stored.file_path)
            (self._target / IMAGES / metadata.file_path).unlink()
            stored = self._images.store(*arguments)
        self._images.keep(stored.file_path)

    def append(self, tile: ExportedTile) -> None:
        self._tiles.write(pack_tile(tile.metadata))

    def finish(self, header: Header, flights: Iterable[bytes], policy: Iterable[bytes]) -> None:
        self._images.make_durable()
        self._tiles.flush()
        os.fsync(self._tiles.fileno())
        handle = os.open(self._target, _DIRECTORY)
        try:
            os.rename(UNFINISHED_TILES, TILES, src_dir_fd=handle, dst_dir_fd=handle)
            write_durably(handle, FLIGHTS, b"".join(flights))
            write_durably(handle, POLICY, b"".join(policy))
            os.fsync(handle)
            write_durably(handle, f"{HEADER}.part", pack_header(header))
            os.rename(f"{HEADER}.part", HEADER, src_dir_fd=handle, dst_dir_fd=handle)
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        with suppress(OSError):
            self._tiles.close()
        self._images.close()


class TarWriter:
    """Writes a .tar. Until it is complete, its name ends with `.part`; an interrupted export begins
    anew."""

    def __init__(self, target: Path) -> None:
        """Raises TargetError if the target exists, or another export writes it."""
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        if target.exists():
            raise TargetError(f"{target}: exists already")
        try:
            handle = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TargetError(f"{self._part}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise TargetError(f"{target}: another export is writing it") from error
        os.ftruncate(handle, 0)
        self._is_finished = False
        self._file = os.fdopen(handle, "wb")
        self._archive = tarfile.open(  # noqa: SIM115
            fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8"
        )
        # After the images, whose list is complete only then.
        self._tiles = tempfile.TemporaryFile(dir=target.parent)  # noqa: SIM115

    def write_image(self, tile: ExportedTile) -> None:
        """Does nothing: an archive is written in order."""

    def append(self, tile: ExportedTile) -> None:
        metadata = tile.metadata
        self._add(f"{IMAGES}/{metadata.file_path}", BytesIO(tile.image), len(tile.image))
        self._tiles.write(pack_tile(metadata))

    def finish(self, header: Header, flights: Iterable[bytes], policy: Iterable[bytes]) -> None:
        size_bytes = self._tiles.tell()
        self._tiles.seek(0)
        self._add(TILES, self._tiles, size_bytes)
        for name, content in (
            (FLIGHTS, b"".join(flights)),
            (POLICY, b"".join(policy)),
            (HEADER, pack_header(header)),
        ):
            self._add(name, BytesIO(content), len(content))
        self._archive.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.rename(self._target)
        self._is_finished = True
        directory = os.open(self._target.parent, _DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        if not self._is_finished:
            with suppress(OSError):
                self._part.unlink()
        self._tiles.close()
        with suppress(OSError):
            self._file.close()

    def _add(self, name: str, content: BinaryIO, size_bytes: int) -> None:
        member = tarfile.TarInfo(name)
        member.size = size_bytes
        self._archive.addfile(member, content)
        self._archive.members.clear()  # type: ignore[attr-defined]
