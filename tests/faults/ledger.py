"""Records what was sent and acknowledged, and checks what is read."""

import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from tests.tiles import YESTERDAY, sha256, tile, tile_uuid, timestamp
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata


class WrongAnswerError(AssertionError):
    """An answer that breaks a guarantee."""


@dataclass
class Entry:
    """One tile, with the newest versions that were sent and acknowledged; 0 is none."""

    key: TileKey
    uuid: str
    sent: int = 0
    acknowledged: int = 0
    acknowledged_at: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """The acknowledged versions, and when each was acknowledged, by the monotonic clock."""


class Ledger:
    """Versions of tiles, each captured later than the one before.

    Each tile has one writer. A read that begins after a version was acknowledged must return
    that version, or a later one that was sent.
    """

    def __init__(self, keys: Iterable[TileKey]) -> None:
        self._entries = {tile_uuid(key): Entry(key, tile_uuid(key)) for key in keys}
        self._lock = threading.Lock()

    @property
    def uuids(self) -> list[str]:
        return list(self._entries)

    @property
    def acknowledged_count(self) -> int:
        """The number of tiles with an acknowledged version."""
        with self._lock:
            return sum(entry.acknowledged > 0 for entry in self._entries.values())

    def next_versions(self, uuids: Iterable[str]) -> list[TileMetadata]:
        """A new version of each tile, recorded as sent."""
        with self._lock:
            entries = [self._entries[uuid] for uuid in uuids]
            for entry in entries:
                entry.sent += 1
            return [_version(entry.key, entry.sent) for entry in entries]

    def acknowledge(self, tiles: Iterable[TileMetadata]) -> None:
        """Records these versions as acknowledged."""
        with self._lock:
            for message in tiles:
                entry = self._entries[tile_uuid(message.key)]
                entry.acknowledged = max(entry.acknowledged, _version_number(message))
                entry.acknowledged_at.append(time.monotonic())
                entry.versions.append(entry.acknowledged)

    def acknowledged(self) -> dict[str, int]:
        """The acknowledged version of each tile, which reads from now on must not miss."""
        with self._lock:
            return {
                uuid: entry.acknowledged
                for uuid, entry in self._entries.items()
                if entry.acknowledged
            }

    def acknowledged_until(self, moment: float) -> dict[str, int]:
        """As `acknowledged`, for a time by the monotonic clock."""
        with self._lock:
            known = {
                uuid: bisect_right(entry.acknowledged_at, moment)
                for uuid, entry in self._entries.items()
            }
            return {
                uuid: self._entries[uuid].versions[count - 1]
                for uuid, count in known.items()
                if count
            }

    def check(self, uuid: str, found: TileMetadata | None, least: int) -> None:
        """Raises WrongAnswerError for a tile that was never written, or is older than the
        version `least`."""
        if found is None:
            if least:
                raise WrongAnswerError(f"{uuid}: version {least} was acknowledged and is not found")
            return
        number = _version_number(found)
        with self._lock:
            entry = self._entries[uuid]
            sent = entry.sent
        if found.tile_uuid != uuid or found.content_sha256 != _content(entry.key, number):
            raise WrongAnswerError(f"{uuid}: {found} was never written")
        if not least <= number <= sent:
            raise WrongAnswerError(f"{uuid}: version {number}, not within {least}..{sent}")

    def within(self, uuids: Iterable[str], x_from: int, x_to: int) -> Iterator[str]:
        """The tiles within a range of columns."""
        return (uuid for uuid in uuids if x_from <= self._entries[uuid].key.x <= x_to)


_STEP = timedelta(seconds=1)
_FIRST = YESTERDAY.replace(microsecond=0)


def _version(key: TileKey, number: int) -> TileMetadata:
    return tile(
        key,
        captured_at=_FIRST + number * _STEP,
        content_sha256=_content(key, number),
    )


def _version_number(found: TileMetadata) -> int:
    return found.captured_at.seconds - timestamp(_FIRST).seconds


def _content(key: TileKey, number: int) -> str:
    return sha256(f"{key.x}/{key.y}/{number}")
