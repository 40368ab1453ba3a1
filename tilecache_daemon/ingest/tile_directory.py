"""A directory of tiles as a source."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tilecache_daemon.ingest.found import (
    MISPLACED,
    UNREADABLE,
    Found,
    FoundTile,
    IgnoredFile,
    Refusal,
    find_tile,
)
from tilecache_daemon.ingest.schemes import (
    Rows,
    Scheme,
    choose_scheme,
    describe_directory,
    detect_scheme,
)

_SAMPLED_TILES: Final = 10_000


class TileDirectory:
    """A directory of `{zoom}/{x}/{y}.{png,jpg,jpeg,webp}`.

    Symbolic links are followed only to files within the directory.
    """

    unpacks = False
    _IMAGE: Final = re.compile(r".*\.(png|jpe?g|webp)", re.IGNORECASE)
    _NUMBER: Final = r"(0|[1-9][0-9]{0,9})"
    _ZOOM: Final = re.compile(r"[0-9]{1,2}")
    _TILE: Final = re.compile(rf"{_NUMBER}/{_NUMBER}/{_NUMBER}\.[^./]+")

    def __init__(self, path: Path, zooms: range | None, scheme: Scheme | None) -> None:
        self.path = path.resolve()
        self._prefix = f"{self.path}{os.sep}"
        self._zooms: range | None = None
        self.scheme = Scheme.XYZ
        self.scheme = choose_scheme(scheme, self._detect_scheme)
        self._zooms = zooms

    def count(self) -> int:
        return sum(not isinstance(found, IgnoredFile) for found in self)

    def __iter__(self) -> Iterator[Found]:
        return self._find(str(self.path))

    def _find(self, directory: str) -> Iterator[Found]:
        for entry in self._walk(directory):
            found = entry if isinstance(entry, Refusal) else self._classify(entry)
            if found is not None:
                yield found

    def _detect_scheme(self) -> Scheme:
        return detect_scheme(self.path, describe_directory(self.path), self._find_rows)

    def _find_rows(self) -> Rows | None:
        """The rows of the highest zoom level, whichever are to be imported: it is there that
        the schemes differ most."""
        names = (entry.name for entry in self.path.iterdir())
        zoom = max((int(name) for name in names if self._ZOOM.fullmatch(name)), default=0)
        tiles = self._find(str(self.path / str(zoom)))
        rows = [found.y for found in islice(tiles, _SAMPLED_TILES) if isinstance(found, FoundTile)]
        return Rows(zoom, min(rows), max(rows)) if rows else None

    def _walk(self, directory: str) -> Iterator["os.DirEntry[str] | Refusal"]:
        try:
            with os.scandir(directory) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Refusal(self._name(directory), "", UNREADABLE, error.strerror or str(error))
            return
        for entry in ordered:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path)
            else:
                yield entry

    def _classify(self, entry: "os.DirEntry[str]") -> Found | None:
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
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.path):
            return Refusal(name, "file_path", MISPLACED, "a symbolic link out of the directory")
        if not entry.is_file():
            return Refusal(name, "", UNREADABLE, "not a regular file")
        return find_tile(name, zoom, x, row, Path(entry.path), self.scheme)

    def _name(self, path: str) -> str:
        return path.removeprefix(self._prefix)
