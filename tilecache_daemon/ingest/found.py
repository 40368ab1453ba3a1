"""What a source of tiles yields."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tilecache.identity import check_cell
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.ingest.schemes import Scheme

UNREADABLE: Final = "UNREADABLE_FILE"
MISPLACED: Final = "MISPLACED_FILE"
NOT_UNPACKED: Final = "NOT_UNPACKED"
SECOND_IMAGE: Final = "SECOND_IMAGE"
MALFORMED: Final = "MALFORMED_LINE"
MISSING: Final = "MISSING_FILE"
WRONG_CONTENT: Final = "WRONG_CONTENT"
NOT_STORED: Final = "NOT_STORED"

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class FoundTile(NamedTuple):
    """An image in a source, for a valid cell."""

    file: str
    """Its path in the source, for messages."""
    zoom: int
    x: int
    y: int
    image: Path | bytes


class BundledTile(NamedTuple):
    """A tile of a bundle. Nothing of it is checked yet."""

    file: str
    metadata: TileMetadata
    read: Callable[[], bytes]
    """Reads its image; raises OSError or StoreError."""


class Refusal(NamedTuple):
    """A tile that is not stored, with the reason."""

    file: str
    field: str
    """The invalid field of `TileMetadata`; empty if there is none."""
    reason: str
    """Stable: the `ErrorInfo.reason` of the daemon, or one of this module's."""
    message: str


class IgnoredFile(NamedTuple):
    """A file or directory that is not a tile's."""

    file: str


Found = FoundTile | BundledTile | Refusal | IgnoredFile


class Source(Protocol):
    """A collection of tiles to import."""

    path: Path
    unpacks: bool
    """Whether the images have to be unpacked into files."""
    scheme: Scheme
    """How its rows are counted. Found tiles have theirs counted from the north."""

    def count(self) -> int:
        """The number of tiles and refusals that iterating yields; raises SourceError."""

    def size_bytes(self) -> int:
        """About how much its images take when they are unpacked; raises SourceError."""

    def __iter__(self) -> Iterator[Found]:
        """Yields everything in the source; raises SourceError."""


def find_tile(
    file: str, zoom: int, x: int, row: int, image: Path | bytes, scheme: Scheme
) -> FoundTile | Refusal:
    """The tile of a column and row, which is counted as `scheme` says."""
    try:
        check_cell(zoom, x, row)
    except ValueError as error:
        # The message begins with the name of the invalid part.
        field = f"key.{str(error).split()[0]}"
        return Refusal(file, field, InvalidRequestError.reason, str(error))
    return FoundTile(file, zoom, x, scheme.flip(zoom, row), image)


def printable(path: str | Path) -> str:
    """A path for messages: bytes that are not UTF-8, and control characters, as escapes."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
