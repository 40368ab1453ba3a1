"""Ids of tiles, many at once: as numbers to find them by, and as text to say them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from tilecache_daemon.tile_columns import Bytes

Numbers = NDArray[np.uint64]
"""Two for each id: its first and its last eight bytes."""

TEXT_SIZE: Final = 36
_DASHES: Final = np.array([8, 13, 18, 23])
_DIGITS: Final = np.array([place for place in range(TEXT_SIZE) if place not in _DASHES])
_NO_DIGIT: Final = 0x80
_DIGIT_OF: Final = np.full(256, _NO_DIGIT, dtype=np.uint8)
_DIGIT_OF[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


class TileIds(Sequence[str]):
    """Canonical lower-case ids, in order."""

    def __init__(self, numbers: Numbers, texts: bytes) -> None:
        """The texts follow each other."""
        self.numbers = numbers
        self._texts = texts

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TileIds":
        """Ids that are known to be canonical."""
        joined = "".join(texts)
        digits = bytes.fromhex(joined.replace("-", ""))
        return cls(np.frombuffer(digits, dtype="<u8").reshape(-1, 2), joined.encode())

    @classmethod
    def parse(cls, texts: Bytes) -> "TileIds | None":
        """From a row of TEXT_SIZE characters for each; None unless all are canonical."""
        digits = _DIGIT_OF.take(texts.take(_DIGITS, axis=1))
        if (texts.take(_DASHES, axis=1) != ord("-")).any() or (digits & _NO_DIGIT).any():
            return None
        return cls(numbers_of(digits[:, ::2] << np.uint8(4) | digits[:, 1::2]), texts.tobytes())

    @cached_property
    def texts(self) -> list[str]:
        """All of them."""
        text = self._texts.decode()
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
