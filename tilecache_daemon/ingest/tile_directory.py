"""A directory of tiles as a source."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tilecache.identity import MAX_ZOOM
from tilecache_daemon.ingest.found import (
    MISPLACED,
    SECOND_IMAGE,
    UNREADABLE,
    Found,
    FoundTile,
    IgnoredFile,
    Refusal,
    find_tile,
    printable,
)
from tilecache_daemon.ingest.schemes import (
    Rows,
    Scheme,
    choose_scheme,
    describe_directory,
    detect_scheme,
)

_SAMPLED_TILES: Final = 10_000
_IMAGE_NAME: Final = re.compile(
    r"(?P<row>[0-9]+)(?P<double>@2x)?\.(?P<kind>png|jpe?g|webp)", re.IGNORECASE
)
_KINDS: Final = "pjw"
_SYSTEM_DIRECTORIES: Final = {
    *("lost+found", "$recycle.bin", "recycler", "system volume information"),
    *("__macosx", "@eadir", "#recycle", "#snapshot"),
}
"""In lower case. They hold thumbnails, copies or what was deleted."""


def is_skipped(name: str) -> bool:
    """Whether a directory or file of this name is left aside: it is hidden, or the system's."""
    return name.startswith(".") or name.lower() in _SYSTEM_DIRECTORIES


class TileDirectory:
    """A directory of `{zoom}/{x}/{y}.{png,jpg,jpeg,webp}`.

    Symbolic links are followed only to files within the directory.
    """

    unpacks = False
    _IMAGE: Final = re.compile(r".*\.(png|jpe?g|webp)", re.IGNORECASE)
    _NUMBER: Final = r"(0|[1-9][0-9]{0,9})"
    _ZOOM: Final = re.compile(r"[0-9]{1,2}")
    _TILE: Final = re.compile(rf"{_NUMBER}/{_NUMBER}/{_NUMBER}(?:@2x)?\.[^./]+")

    def __init__(self, path: Path, zooms: range | None, scheme: Scheme | None) -> None:
        self.path = path.resolve()
        self._prefix = f"{self.path}{os.sep}"
        self._zooms: range | None = None
        self.scheme = Scheme.XYZ
        self.scheme = choose_scheme(scheme, self._detect_scheme)
        self._zooms = zooms

    def count(self) -> int:
        return sum(not isinstance(found, IgnoredFile) for found in self)

    def size_bytes(self) -> int:
        return 0  # nothing is unpacked

    def __iter__(self) -> Iterator[Found]:
        return self._find(str(self.path))

    def _find(self, directory: str) -> Iterator[Found]:
        try:
            with os.scandir(directory) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Refusal(self._name(directory), "", UNREADABLE, error.strerror or str(error))
            return
        chosen = _choose_images(entry.name for entry in ordered)
        for entry in ordered:
            if entry.is_dir(follow_symlinks=False):
                yield from self._find_in(entry)
            else:
                found = self._classify(entry, chosen)
                if found is not None:
                    yield found

    def _find_in(self, directory: "os.DirEntry[str]") -> Iterator[Found]:
        name = self._name(directory.path)
        if is_skipped(directory.name):
            yield IgnoredFile(f"{name}/")
        elif (
            self._zooms is None
            or not self._ZOOM.fullmatch(name)
            or int(directory.name) in self._zooms
        ):
            yield from self._find(directory.path)

    def _detect_scheme(self) -> Scheme:
        return detect_scheme(self.path, describe_directory(self.path), self._find_rows)

    def _find_rows(self) -> Rows | None:
        """The rows of the highest zoom level, whichever are to be imported: it is there that
        the schemes differ most."""
        for zoom in range(MAX_ZOOM, -1, -1):
            if (self.path / str(zoom)).is_dir():
                sample = islice(self._find(str(self.path / str(zoom))), _SAMPLED_TILES)
                rows = [found.y for found in sample if isinstance(found, FoundTile)]
                if rows:
                    return Rows(zoom, min(rows), max(rows))
        return None

    def _classify(self, entry: "os.DirEntry[str]", chosen: dict[str, str]) -> Found | None:
        name = self._name(entry.path)
        if entry.is_symlink() and entry.is_dir():
            return Refusal(name, "", MISPLACED, "symbolic links to directories are not followed")
        if entry.name.startswith(".") or not self._IMAGE.fullmatch(entry.name):
            return IgnoredFile(name)
        cell = self._TILE.fullmatch(name)
        if not cell:
            return Refusal(name, "file_path", MISPLACED, "not at {zoom}/{x}/{y}.{suffix}")
        zoom, x, row = map(int, cell.groups())
        if self._zooms is not None and zoom not in self._zooms:
            return None
        if chosen[cell[3]] != entry.name:
            why = f"a second image of its cell, of which {chosen[cell[3]]} is imported"
            return Refusal(name, "file_path", SECOND_IMAGE, why)
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.path):
            return Refusal(name, "file_path", MISPLACED, "a symbolic link out of the directory")
        if not entry.is_file():
            return Refusal(name, "", UNREADABLE, "not a regular file")
        return find_tile(name, zoom, x, row, Path(entry.path), self.scheme)

    def _name(self, path: str) -> str:
        return printable(path.removeprefix(self._prefix))


def _choose_images(names: Iterable[str]) -> dict[str, str]:
    """The file that is imported for each row: rather one of normal than of double resolution,
    and rather PNG than JPEG than WebP."""
    images = [match for match in map(_IMAGE_NAME.fullmatch, names) if match]
    images.sort(key=lambda match: (bool(match["double"]), _KINDS.index(match["kind"][0].lower())))
    chosen: dict[str, str] = {}
    for match in images:
        chosen.setdefault(match["row"], match[0])
    return chosen
