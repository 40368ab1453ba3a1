"""A bundle as a source: a directory or a .tar that `tilecache export` has written."""

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from io import BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn, Protocol, TypeVar

from tilecache.v1.tile_cache_admin_pb2 import FreshnessRule, Pin, Sector
from tilecache.v1.tile_metadata_store_pb2 import Flight
from tilecache_daemon.ingest.bundle_format import (
    FLIGHTS,
    HEADER,
    IMAGES,
    MAX_LINE_BYTES,
    POLICY,
    TILES,
    UNFINISHED_TILES,
    FormatError,
    Header,
    read_flight,
    read_header,
    read_policy,
    read_tile,
)
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import (
    MALFORMED,
    MISPLACED,
    BundledTile,
    Found,
    Refusal,
    printable,
)
from tilecache_daemon.ingest.image_store import StoreError, read_below, split_path
from tilecache_daemon.ingest.images import MAX_IMAGE_BYTES
from tilecache_daemon.ingest.schemes import Scheme

_LISTS: Final = (HEADER, TILES, FLIGHTS, POLICY)
_MAX_TAR_HEADER_BYTES: Final = 1 << 20
_LINK: Final = "a link, of which a bundle has none"

ReadImage = Callable[[], bytes]
Parsed = TypeVar("Parsed")


class BundleFiles(Protocol):
    """The entries of a bundle."""

    def open(self, name: str) -> BinaryIO | None:
        """One of the lists; None if it does not exist."""

    def find_image(self, file_path: str) -> ReadImage:
        """What reads an image, in any thread; raises OSError or StoreError."""

    def close(self) -> None:
        """Closes the bundle."""


def is_bundle(path: Path) -> bool:
    """Whether there is a bundle, be it incomplete."""
    if path.is_dir():
        return any((path / name).is_file() for name in (HEADER, TILES, UNFINISHED_TILES))
    return path.name.lower().endswith((".tar", ".tar.part"))


class Bundle:
    """The tiles of a bundle, with what belongs to them."""

    unpacks = False
    scheme = Scheme.XYZ

    def __init__(self, path: Path, zooms: range | None = None) -> None:
        """Raises SourceError if the bundle is incomplete, damaged or of an unknown version."""
        self.path = path.resolve()
        self._zooms = zooms
        if path.name.lower().endswith(".part"):
            raise SourceError(f"{path}: incomplete: its export was interrupted; run it again")
        try:
            self._files: BundleFiles = (
                DirectoryFiles(self.path) if path.is_dir() else TarFiles(self.path)
            )
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        try:
            self.header = self._check()
        except BaseException:
            self._files.close()
            raise

    def close(self) -> None:
        """Closes its files."""
        self._files.close()

    def _check(self) -> Header:
        try:
            header = read_header(self._read_header())
        except FormatError as error:
            raise SourceError(f"{self.path}: {error}") from error
        count = sum(1 for _ in self._lines(TILES))
        if count != header.tile_count:
            raise SourceError(
                f"{self.path}: damaged: {TILES} has {count:,} lines, and {HEADER} says "
                f"{header.tile_count:,}"
            )
        return header

    def count(self) -> int:
        if self._zooms is None:
            return self.header.tile_count
        return sum(1 for _ in self._read_tiles())

    def size_bytes(self) -> int:
        return self.header.used_bytes

    def missing_bytes(self, root: Path) -> int:
        """The size of the images that are not yet stored below a directory."""
        return sum(
            found.metadata.disk_bytes
            for found in self._read_tiles()
            if isinstance(found, BundledTile)
            and not _has_size(root / found.metadata.file_path, found.metadata.disk_bytes)
        )

    def __iter__(self) -> Iterator[Found]:
        for found in self._read_tiles():
            if isinstance(found, Refusal):
                yield found
                continue
            try:
                yield found._replace(read=self._files.find_image(found.metadata.file_path))
            except OSError as error:
                yield found._replace(read=partial(_raise, error))

    def flights(self) -> Iterator[Flight]:
        """The recorded flights; raises SourceError."""
        yield from self._parsed(FLIGHTS, read_flight)

    def policy(self) -> Iterator[Sector | FreshnessRule | Pin]:
        """Sectors, rules and pins; raises SourceError."""
        yield from self._parsed(POLICY, read_policy)

    def _read_header(self) -> bytes:
        file = self._files.open(HEADER)
        if file is None:
            raise SourceError(
                f"{self.path}: incomplete, or no bundle: it has no {HEADER}, which is written "
                "last; run its export again"
            )
        with file:
            return file.read(MAX_LINE_BYTES)

    def _read_tiles(self) -> Iterator[BundledTile | Refusal]:
        for number, line in enumerate(self._lines(TILES), 1):
            try:
                tile = read_tile(line)
            except FormatError as error:
                yield Refusal(f"{TILES}:{number}", "", MALFORMED, str(error))
                continue
            if self._zooms is not None and tile.key.zoom not in self._zooms:
                continue
            name = printable(tile.file_path)
            try:
                split_path(tile.file_path)
            except StoreError as error:
                yield Refusal(f"{TILES}:{number}", "file_path", MISPLACED, str(error))
                continue
            yield BundledTile(name, tile, partial(_raise, FileNotFoundError()))

    def _parsed(self, name: str, read: Callable[[bytes], Parsed]) -> Iterator[Parsed]:
        for number, line in enumerate(self._lines(name), 1):
            try:
                yield read(line)
            except FormatError as error:
                raise SourceError(f"{self.path}: {name}:{number}: {error}") from error

    def _lines(self, name: str) -> Iterator[bytes]:
        file = self._files.open(name)
        if file is None:
            return
        with file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise SourceError(f"{self.path}: {name}:{number}: the line is too long")
                yield line


class DirectoryFiles:
    """The files of a bundle that is a directory. Symbolic links are not followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._directory)

    def open(self, name: str) -> BinaryIO | None:
        try:
            handle = os.open(
                name,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=self._directory,
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"{self._path / name}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise SourceError(f"{self._path / name}: not a regular file")
        return os.fdopen(handle, "rb")

    def find_image(self, file_path: str) -> ReadImage:
        return partial(read_below, self._directory, f"{IMAGES}/{file_path}", MAX_IMAGE_BYTES)


class _Part(NamedTuple):
    """Where the content of a member is in the archive."""

    offset: int
    size_bytes: int


class TarFiles:
    """The members of a bundle that is a .tar.

    The archive is read through once beforehand, so that nothing of one that is truncated or has
    links is stored. Images are found without an index as long as they have the order of the tiles,
    as `tilecache export` writes them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lists: dict[str, _Part] = {}
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for name, part in self._members():
                if name in _LISTS:
                    self._lists[name] = part
        except BaseException:
            os.close(self._file)
            raise
        self._ahead = self._members()
        self._passed: dict[str, _Part] = {}
        self._is_indexed = False

    def close(self) -> None:
        os.close(self._file)

    def open(self, name: str) -> BinaryIO | None:
        part = self._lists.get(name)
        if part is None:
            return None
        return BufferedReader(_Window(self._file, part))

    def find_image(self, file_path: str) -> ReadImage:
        name = f"{IMAGES}/{file_path}"
        part = self._passed.get(name) or self._find_ahead(name)
        if part is None and not self._is_indexed:
            # Named by a second tile, and forgotten.
            self._passed, self._is_indexed = dict(self._members()), True
            part = self._passed.get(name)
        if part is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return partial(self._read, part)

    def _find_ahead(self, name: str) -> _Part | None:
        for passed, part in self._ahead:
            if passed == name:
                return part
            self._passed[passed] = part
        return None

    def _read(self, part: _Part) -> bytes:
        return os.pread(self._file, min(part.size_bytes, MAX_IMAGE_BYTES + 1), part.offset)

    def _members(self) -> Iterator[tuple[str, _Part]]:
        """The names of its files, and where they are; raises SourceError for what no bundle
        has."""
        try:
            with (
                closing(_HeaderReader(self._path)) as reader,
                tarfile.open(fileobj=reader, mode="r:", encoding="utf-8") as archive,
            ):
                yield from self._checked(archive)
        except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError) as error:
            raise SourceError(f"{self._path}: damaged, or not a .tar: {error}") from error

    def _checked(self, archive: tarfile.TarFile) -> Iterator[tuple[str, _Part]]:
        size_bytes = os.fstat(self._file).st_size
        position = -1
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]
            name = member.name.removeprefix("./")
            if member.islnk() or member.issym():
                raise SourceError(f"{self._path}: {printable(name)}: {_LINK}")
            end = member.offset_data + member.size
            if member.size < 0 or archive.offset <= position or end > size_bytes:
                raise SourceError(f"{self._path}: truncated or damaged at {printable(name)}")
            position = archive.offset
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise SourceError(f"{self._path}: {printable(name)}: not a regular file")
            try:
                split_path(name)
            except StoreError as error:
                raise SourceError(f"{self._path}: {error}") from error
            yield name, _Part(member.offset_data, member.size)


class _Window(RawIOBase):
    """A part of a file."""

    def __init__(self, file: int, part: _Part) -> None:
        super().__init__()
        self._file = file
        self._position = part.offset
        self._end = part.offset + part.size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._file, min(len(buffer), self._end - self._position), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _HeaderReader(BytesIO):
    """A file of which only the headers are read: a longer read is that of a bad header."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._source = path.open("rb")

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError("a header is too long")
        return self._source.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def close(self) -> None:
        self._source.close()


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except (OSError, ValueError):
        return False


def _raise(error: Exception) -> NoReturn:
    raise error
