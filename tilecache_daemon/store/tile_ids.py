"""Ids of tiles, many at once: as numbers to find them by, and as text to say them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from tilecache_daemon.store.tile_columns import Bytes

Numbers = NDArray[np.uint64]
"""Two for each id: its first and its last eight bytes."""

TEXT_SIZE: Final = 36
_DIGITS: Final = np.dtype([("a", "V8"), ("b", "V4"), ("c", "V4"), ("d", "V4"), ("e", "V12")])
"""Runs of digits."""
_TEXT: Final = np.dtype(
    {
        "names": ["a", "b", "c", "d", "e"],
        "formats": ["V8", "V4", "V4", "V4", "V12"],
        "offsets": [0, 9, 14, 19, 24],
        "itemsize": TEXT_SIZE,
    }
)
"""The same with dashes between them."""
_DASHES: Final = slice(8, 24, 5)
_HEX: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype="u2")


class TileIds(Sequence[str]):
    """Canonical lower-case ids, in order."""

    def __init__(self, numbers: Numbers, texts: Bytes) -> None:
        """The texts follow each other."""
        self.numbers = numbers
        self._texts = texts

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TileIds":
        """Ids that are known to be canonical."""
        joined = "".join(texts)
        digits = bytes.fromhex(joined.replace("-", ""))
        return cls(np.frombuffer(digits, dtype="<u8").reshape(-1, 2), _bytes(joined.encode()))

    @classmethod
    def parse(cls, texts: Bytes) -> "TileIds | None":
        """From a row of TEXT_SIZE characters for each; None unless all are canonical."""
        if (texts[:, _DASHES] != ord("-")).any():
            return None
        rows = np.empty((len(texts), 1), dtype=_DIGITS)
        digits = _with_runs_of(texts.view(_TEXT), rows).tobytes()
        try:
            ids = bytes.fromhex(digits.decode())
        except ValueError:
            return None
        # fromhex() takes capital letters and spaces, too.
        return cls(numbers_of(_bytes(ids)), texts) if ids.hex().encode() == digits else None

    @cached_property
    def texts(self) -> list[str]:
        """All of them."""
        text = self._texts.tobytes().decode()
        return [text[start : start + TEXT_SIZE] for start in range(0, len(text), TEXT_SIZE)]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        return self.texts[place]


def numbers_of(ids: Bytes) -> Numbers:
    """The numbers of ids of 16 bytes."""
    return np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)


def uuid5_texts(digests: Sequence[bytes]) -> list[str]:
    """The UUIDv5 that each SHA-1 of 20 bytes gives."""
    ids = _bytes(b"".join(digests)).reshape(-1, 20)[:, :16].copy()
    ids[:, 6] = ids[:, 6] & 0x0F | 0x50
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return TileIds(numbers_of(ids), texts_of(ids)).texts


def texts_of(ids: Bytes) -> Bytes:
    """The canonical text of each id of 16 bytes, a row of TEXT_SIZE characters."""
    texts = np.full((len(ids), TEXT_SIZE), ord("-"), dtype=np.uint8)
    _with_runs_of(_HEX.take(ids).view(_DIGITS), texts.view(_TEXT))
    return texts


def _with_runs_of(some: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.void]:
    """The others, of the type _DIGITS or _TEXT, each with the digits of one of some."""
    for run in _DIGITS.names or ():
        others[run] = some[run]
    return others


def _bytes(data: bytes) -> Bytes:
    return np.frombuffer(data, dtype=np.uint8)
