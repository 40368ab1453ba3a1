"""What changed in a block, for copies of it that were made at an earlier version.

A history holds a digest of each tile, not the tile, and the beat of its last change. From any
version that it remembers it tells which tiles were put or removed since. The histories of all
blocks are under a ceiling of bytes; without its history, a block is sent whole.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from tilecache.mercator import BlockKey

TILE_HISTORY_BYTES: Final = 165
"""Memory of a tile's id and digest in a history. Measured as resident memory."""
_CHANGE_BYTES: Final = 40
_HISTORY_BYTES: Final = 1_500
_DIGEST_BYTES: Final = 16
_MAX_VERSIONS: Final = 128
_MAX_REMOVED: Final = 1_024


class Changes(NamedTuple):
    """The tiles that were put and removed since a version, by id."""

    put: frozenset[bytes]
    removed: frozenset[bytes]


class BlockHistory:
    """The changes of one block."""

    __slots__ = ("_beat", "_changed", "_digests", "_removed", "_versions", "version")

    def __init__(self, tile_uuids: Sequence[bytes], elements: Sequence[bytes]) -> None:
        """The tiles by the bytes of their ids, and their elements, in a defined order."""
        self._digests = dict(zip(tile_uuids, map(_digest, elements), strict=True))
        self._beat = 0
        self._changed: dict[bytes, int] = {}
        self._removed: dict[bytes, int] = {}
        """By id, the beat of the last change."""
        self.version = _version(self._digests)
        self._versions = {self.version: self._beat}

    @property
    def byte_count(self) -> int:
        """Memory that the history takes, about."""
        changes = len(self._changed) + len(self._removed) + len(self._versions)
        return _HISTORY_BYTES + len(self._digests) * TILE_HISTORY_BYTES + changes * _CHANGE_BYTES

    def update(self, tile_uuids: Sequence[bytes], elements: Sequence[bytes]) -> None:
        """The block's tiles as they are now."""
        before = self._digests
        digests = dict(zip(tile_uuids, map(_digest, elements), strict=True))
        version = _version(digests)
        if version == self.version:
            return
        self._beat += 1
        for tile_uuid in before.keys() - digests.keys():
            self._changed.pop(tile_uuid, None)
            self._removed[tile_uuid] = self._beat
        for tile_uuid, digest in digests.items():
            if before.get(tile_uuid) != digest:
                self._removed.pop(tile_uuid, None)
                self._changed[tile_uuid] = self._beat
        self._digests, self.version = digests, version
        # Again at the end if the block has returned to a former version.
        self._versions.pop(version, None)
        self._versions[version] = self._beat
        self._forget_old_versions()

    def changes_since(self, version: bytes) -> Changes | None:
        """What changed since a version; None if that is not remembered."""
        since = self._versions.get(version)
        if since is None:
            return None
        return Changes(
            frozenset(tile_uuid for tile_uuid, beat in self._changed.items() if beat > since),
            frozenset(tile_uuid for tile_uuid, beat in self._removed.items() if beat > since),
        )

    def _forget_old_versions(self) -> None:
        if len(self._removed) > _MAX_REMOVED:
            self._versions = {self.version: self._beat}
        elif len(self._versions) > _MAX_VERSIONS:
            del self._versions[next(iter(self._versions))]
        else:
            return
        oldest = next(iter(self._versions.values()))
        self._changed = {key: beat for key, beat in self._changed.items() if beat > oldest}
        self._removed = {key: beat for key, beat in self._removed.items() if beat > oldest}


class BlockHistories:
    """The histories of some blocks, the least recently used of which are forgotten first."""

    def __init__(self, max_bytes: int, on_change: Callable[[int], None]) -> None:
        """`on_change` is called with the memory that all histories take."""
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._on_change = on_change
        self._histories: OrderedDict[BlockKey, BlockHistory] = OrderedDict()

    def update(
        self, key: BlockKey, tile_uuids: Sequence[bytes], elements: Sequence[bytes]
    ) -> BlockHistory:
        """The history of a block, with the tiles as they are now. It may be forgotten at once,
        if it alone is larger than the ceiling."""
        history = self._histories.pop(key, None)
        if history is None:
            history = BlockHistory(tile_uuids, elements)
        else:
            self.used_bytes -= history.byte_count
            history.update(tile_uuids, elements)
        self._histories[key] = history
        self.used_bytes += history.byte_count
        while self.used_bytes > self.max_bytes:
            _, oldest = self._histories.popitem(last=False)
            self.used_bytes -= oldest.byte_count
        self._on_change(self.used_bytes)
        return history


def _digest(element: bytes) -> bytes:
    return blake2b(element, digest_size=_DIGEST_BYTES).digest()


def _version(digests: dict[bytes, bytes]) -> bytes:
    return blake2b(b"".join(digests.values()), digest_size=_DIGEST_BYTES).digest()
