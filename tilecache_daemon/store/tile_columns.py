"""Some tiles as columns of numbers: what is done to all of them at once takes a fraction of
the time that it takes one by one."""

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
"""All of a tile that has a fixed size, as PostgreSQL sends it (`sql.TILE_RECORD`). Times are
microseconds since 2000. `kind` is several small numbers: from its last bit on the number of
a `TileSource`, 0 for one that has none; from LABEL_SHIFT on the place in
`models.FreshnessLabel`; from SHA256_SHIFT on whether the content's hash is known.
"""

LABEL_SHIFT: Final = 8
SHA256_SHIFT: Final = 16
SHA256_CHARACTERS: Final = 64

NO_FLIGHT: Final = bytes(16)
NO_SIZE: Final = -1
NO_TIME: Final = -(2**63)


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

    def take(self, places: Any) -> "Texts":
        """Those at some places, in that order. Their bytes are not moved."""
        return Texts(self.data, self.starts[places], self.sizes[places])

    def at(self, place: int) -> bytes:
        """The text at a place."""
        start = int(self.starts[place])
        return self.data[start : start + int(self.sizes[place])].tobytes()

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
        places = self.starts[:, None] + np.arange(width)
        return self.data.take(places, mode="clip")


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
    def label_place(self) -> NDArray[np.int32]:
        return self.rows["kind"] >> LABEL_SHIFT & ((1 << (SHA256_SHIFT - LABEL_SHIFT)) - 1)

    @property
    def tile_count(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[np.intp]) -> "TileColumns":
        """Those at some places, in that order."""
        # Records are many times as slow to index as to take.
        rows, *texts = self
        return TileColumns(rows.take(places), *(text.take(places) for text in texts))

    def part(self, start: int | None, stop: int | None) -> "TileColumns":
        """Those from one place to before another. Nothing is copied."""
        rows, *texts = self
        some = slice(start, stop)
        return TileColumns(rows[some], *(text.take(some) for text in texts))
