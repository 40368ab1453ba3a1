"""Tiles as numpy columns: an operation on all of them takes a fraction of the time of a Python
loop."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

RECORD: Final = np.dtype(
    [
        ("tile_uuid", "16u1"),
        ("location_hash", "16u1"),
        ("flight_id", "16u1"),
        ("x", ">i4"),
        ("y", ">i4"),
        ("zoom", ">i4"),
        ("file_path_characters", ">i4"),
        ("tile_size_pixels", ">i4"),
        ("kind", ">i4"),
        ("latitude", ">f8"),
        ("longitude", ">f8"),
        ("tile_size_meters", ">f8"),
        ("disk_bytes", ">i8"),
        ("captured_us", ">i8"),
        ("created_us", ">i8"),
        ("accessed_us", ">i8"),
        ("uploaded_us", ">i8"),
    ]
)
"""The fields of a tile that have a fixed size, as PostgreSQL sends them (`sql.TILE_RECORD`).
Times are microseconds since 2000. `kind` combines small numbers: in its lowest bits the number
of a `TileSource`, 0 for a source that has none; from LABEL_SHIFT on the index in
`models.FreshnessLabel`; from SHA256_SHIFT on whether the content's hash is known.
"""

LABEL_SHIFT: Final = 8
SHA256_SHIFT: Final = 16
SHA256_CHARACTERS: Final = 64

NO_FLIGHT: Final = bytes(16)
NO_SIZE: Final = -1
NO_TIME: Final = -(2**63)

UUID_BYTES: Final = 16
UUID_CHARACTERS: Final = 36
_DIGITS: Final = np.dtype([("a", "V8"), ("b", "V4"), ("c", "V4"), ("d", "V4"), ("e", "V12")])
"""The digits of a UUID in its five groups."""
_TEXT: Final = np.dtype(
    {
        "names": ["a", "b", "c", "d", "e"],
        "formats": ["V8", "V4", "V4", "V4", "V12"],
        "offsets": [0, 9, 14, 19, 24],
        "itemsize": UUID_CHARACTERS,
    }
)
"""The same groups with dashes between them."""
_HEX: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype="u2")


def uuid_characters(uuids: Bytes) -> Bytes:
    """The canonical text of each UUID of 16 bytes: a row of UUID_CHARACTERS."""
    texts = np.full((len(uuids), UUID_CHARACTERS), ord("-"), dtype=np.uint8)
    groups, digits = texts.view(_TEXT), _HEX.take(uuids).view(_DIGITS)
    for name in _DIGITS.names or ():
        groups[name] = digits[name]
    return texts


def uuid_texts(uuids: Bytes) -> list[str]:
    """As `uuid_characters`, as texts."""
    text = uuid_characters(uuids).tobytes().decode()
    return [text[at : at + UUID_CHARACTERS] for at in range(0, len(text), UUID_CHARACTERS)]


class Texts:
    """A text for each tile, as UTF-8."""

    __slots__ = ("data", "sizes", "starts")

    def __init__(self, data: Bytes, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        """All texts' bytes, where each starts among them, and how many it has."""
        self.data = data
        self.starts = starts
        self.sizes = sizes

    @classmethod
    def split(cls, joined: str, characters: NDArray[Any]) -> "Texts":
        """Texts that follow each other, with so many characters each."""
        sizes = characters.astype(np.int64)
        if joined.isascii():
            return cls.follow(joined.encode(), sizes)
        ends = np.cumsum(sizes).tolist()
        return cls.of(
            [
                joined[end - size : end].encode()
                for end, size in zip(ends, sizes.tolist(), strict=True)
            ]
        )

    @classmethod
    def lines(cls, joined: str, count: int) -> "Texts":
        """So many texts that follow each other, with a line break between two."""
        if not joined.strip("\n"):
            return cls.follow(b"", np.zeros(count, dtype=np.int64))
        return cls.of(joined.encode().split(b"\n"))

    @classmethod
    def of(cls, texts: list[bytes]) -> "Texts":
        """These texts."""
        sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        return cls.follow(b"".join(texts), sizes)

    @classmethod
    def follow(cls, joined: bytes, sizes: NDArray[np.int64]) -> "Texts":
        """Texts that follow each other, with so many bytes each."""
        return cls(np.frombuffer(joined, dtype=np.uint8), np.cumsum(sizes) - sizes, sizes)

    def take(self, indexes: Any) -> "Texts":
        """Those at some indexes, in that order. Their bytes are not copied."""
        return Texts(self.data, self.starts[indexes], self.sizes[indexes])

    def at(self, index: int) -> bytes:
        """The text at an index."""
        start = int(self.starts[index])
        return self.data[start : start + int(self.sizes[index])].tobytes()

    @property
    def widest(self) -> int:
        """The size of the longest."""
        return int(self.sizes.max(initial=0))

    def padded(self) -> Bytes:
        """A row a text, as wide as the longest; what lies beyond a shorter one is arbitrary."""
        width = self.widest
        if width == 0:
            return np.empty((len(self.sizes), 0), dtype=np.uint8)
        if len(self.data) == width * len(self.sizes) and bool((self.sizes == width).all()):
            return self.data.reshape(-1, width).take(self.starts // width, axis=0)
        indexes = self.starts[:, None] + np.arange(width)
        return self.data.take(indexes, mode="clip")


class TileColumns(NamedTuple):
    """Some tiles."""

    rows: NDArray[np.void]
    """Of the type RECORD."""
    file_path: Texts
    content_sha256: Texts
    """An empty text where it is unknown."""
    quality_metadata: Texts
    """JSON; an empty text where there is none."""

    @classmethod
    def read(cls, runs: Sequence[tuple[bytes, str, str | None, str]]) -> "TileColumns":
        """From rows of the columns of `sql.TILE_RECORDS`."""
        records, paths, hashes, qualities = zip(*runs, strict=True) if runs else ((),) * 4
        rows = np.frombuffer(b"".join(records), dtype=RECORD)
        return cls(
            rows,
            Texts.split("".join(paths), rows["file_path_characters"]),
            Texts.split(
                "".join(text for text in hashes if text),
                (rows["kind"] >> SHA256_SHIFT) * SHA256_CHARACTERS,
            ),
            Texts.lines("\n".join(qualities), len(rows)),
        )

    @property
    def source_number(self) -> NDArray[np.int32]:
        return self.rows["kind"] & ((1 << LABEL_SHIFT) - 1)

    @property
    def label_index(self) -> NDArray[np.int32]:
        return self.rows["kind"] >> LABEL_SHIFT & ((1 << (SHA256_SHIFT - LABEL_SHIFT)) - 1)

    @property
    def tile_count(self) -> int:
        return len(self.rows)

    @property
    def tile_uuids(self) -> list[str]:
        """In canonical text."""
        return uuid_texts(self.rows["tile_uuid"])

    def take(self, indexes: NDArray[np.intp]) -> "TileColumns":
        """Those at some indexes, in that order."""
        # Indexing a record array is many times as slow as take().
        rows, *texts = self
        return TileColumns(rows.take(indexes), *(text.take(indexes) for text in texts))

    def without_accesses(self) -> "TileColumns":
        """The same without the times of their last use."""
        rows = self.rows.copy()
        rows["accessed_us"] = NO_TIME
        return self._replace(rows=rows)

    def part(self, start: int | None, stop: int | None) -> "TileColumns":
        """Those from `start` to before `stop`. Nothing is copied."""
        rows, *texts = self
        some = slice(start, stop)
        return TileColumns(rows[some], *(text.take(some) for text in texts))
