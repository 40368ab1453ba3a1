"""PMTiles archives, legal and not, built byte by byte."""

import gzip
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise

from pmtiles.tile import zxy_to_tileid

from tests.imports.pictures import BOUNDS, CELLS, MIRRORED_BOUNDS, Cell, flipped, picture

Entry = tuple[int, int, int, int]
"""Id, run length, length, and offset plus one (0: after the previous entry)."""

NOT_PACKED, GZIP, BROTLI, ZSTD = 1, 2, 3, 4
MVT, PNG, AVIF, MLT = 1, 2, 5, 6
HEADER_BYTES = 127
LAST_ID = zxy_to_tileid(31, 1 << 30, 0)


def number(value: int) -> bytes:
    """A varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def directory(*entries: Entry, count: int | None = None) -> bytes:
    """A directory that is not packed."""
    ids = [entry[0] for entry in entries]
    steps = [ids[0], *(after - before for before, after in pairwise(ids))]
    columns = [steps, *([entry[column] for entry in entries] for column in (1, 2, 3))]
    numbers = [len(entries) if count is None else count, *(n for column in columns for n in column)]
    return b"".join(map(number, numbers))


def archive(
    root: bytes,
    tiles: bytes = b"",
    leaves: bytes = b"",
    *,
    version: bytes = b"\3",
    packed: int = NOT_PACKED,
    tile_packed: int = NOT_PACKED,
    kind: int = PNG,
    bounds: str = BOUNDS,
    root_offset: int = HEADER_BYTES,
    root_length: int | None = None,
) -> bytes:
    """An archive of one root, tiles and leaf directories, in this order after its header."""
    west, south, east, north = (round(float(degrees) * 1e7) for degrees in bounds.split(","))
    tiles_offset = HEADER_BYTES + len(root)
    header = struct.pack(
        "<7s1s11Q6B4iB2i",
        *(b"PMTiles", version, root_offset, len(root) if root_length is None else root_length),
        *(0, 0, tiles_offset + len(tiles), len(leaves), tiles_offset, len(tiles), 0, 0, 0),
        *(1, packed, tile_packed, kind, 5, 7, west, south, east, north, 5, 0, 0),
    )
    return header + root + tiles + leaves


def entries_of(cells: Sequence[Cell], pack: Callable[[bytes], bytes]) -> tuple[list[Entry], bytes]:
    """The entries of some cells, and their images one after the other."""
    entries: list[Entry] = []
    tiles = b""
    for tile_id, image in sorted((zxy_to_tileid(*cell), picture(cell)) for cell in cells):
        packed = pack(image)
        entries.append((tile_id, 1, len(packed), len(tiles) + 1))
        tiles += packed
    return entries, tiles


def plain(**options: int | bytes | str) -> bytes:
    """A legal archive of all cells, but for the options."""
    entries, tiles = entries_of(CELLS, bytes)
    return archive(directory(*entries), tiles, **options)  # type: ignore[arg-type]


def with_leaves(refer_to: Callable[[int], int] = lambda leaf: leaf, bounds: str = BOUNDS) -> bytes:
    """Each tile in a leaf directory of its own, or in that to which another is referred."""
    entries, tiles = entries_of(CELLS, bytes)
    leaves = [directory(entry) for entry in entries]
    starts = [sum(map(len, leaves[:leaf])) for leaf in range(len(leaves))]
    root = directory(
        *(
            (entry[0], 0, len(leaves[refer_to(leaf)]), starts[refer_to(leaf)] + 1)
            for leaf, entry in enumerate(entries)
        )
    )
    return archive(root, tiles, b"".join(leaves), bounds=bounds)


def one(entry: Entry, **options: int | bytes | str) -> bytes:
    """An archive with one entry and one small tile."""
    return archive(directory(entry), b"tile", **options)  # type: ignore[arg-type]


def _zipped_tiles() -> bytes:
    entries, tiles = entries_of(CELLS, gzip.compress)
    return archive(directory(*entries), tiles, tile_packed=GZIP)


def _mirrored() -> bytes:
    """As if made from an MBTiles file whose rows were counted from the north already."""
    pairs = sorted((zxy_to_tileid(*flipped(cell)), picture(cell)) for cell in CELLS)
    entries = [(tile_id, 1, len(image), 0) for tile_id, image in pairs]
    entries[0] = (*entries[0][:3], 1)
    return archive(directory(*entries), b"".join(image for _, image in pairs))


def _packed() -> bytes:
    entries, tiles = entries_of(CELLS, bytes)
    return archive(gzip.compress(directory(*entries)), tiles, packed=GZIP)


def _in_circles(length: int, count: int) -> bytes:
    """Leaf directories that are one and the same, and list only themselves."""
    leaf = directory(*((position, 0, length, 1) for position in range(count)))
    return archive(leaf, leaves=leaf.ljust(length, b"\0"))


def _overlapping_leaves() -> bytes:
    """Many leaf directories, each almost as long as the archive."""
    entries = [(position, 0, 5_000, 1) for position in range(1000)]
    leaf = directory((0, 1, 1, 1)).ljust(6_000, b"\0")
    return archive(directory(*entries), b"t", leaf)


LEGAL: dict[str, bytes] = {
    "plain.pmtiles": plain(),
    "directories-packed.pmtiles": _packed(),
    "directories-packing-not-given.pmtiles": plain(packed=0),
    "leaf-directories.pmtiles": with_leaves(),
    "tiles-gzipped.pmtiles": _zipped_tiles(),
    "tiles-packing-and-kind-not-given.pmtiles": plain(tile_packed=0, kind=0),
    "version-written-as-a-digit.pmtiles": plain(version=b"3"),
    "bounds-of-zero.pmtiles": plain(bounds="0,0,0,0"),
}

MIRRORED: dict[str, bytes] = {
    "bounds-say-tms.pmtiles": _mirrored(),
    "bounds-mirrored.pmtiles": plain(bounds=MIRRORED_BOUNDS),
}

UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "directories-brotli.pmtiles": (plain(packed=BROTLI), "directories are compressed with BROTLI"),
    "directories-zstd.pmtiles": (plain(packed=ZSTD), "directories are compressed with ZSTD"),
    "tiles-brotli.pmtiles": (plain(tile_packed=BROTLI), "tiles are compressed with BROTLI"),
    "tiles-zstd.pmtiles": (plain(tile_packed=ZSTD), "tiles are compressed with ZSTD"),
    "vector.pmtiles": (plain(kind=MVT), "contains MVT tiles"),
    "maplibre-vector.pmtiles": (plain(kind=MLT), "contains MLT tiles"),
    "avif.pmtiles": (plain(kind=AVIF), "contains AVIF tiles"),
    "kind-of-the-future.pmtiles": (plain(kind=99), "99"),
    "version-4.pmtiles": (plain(version=b"\4"), "version 4"),
    "version-2.pmtiles": (b"PM\2\0" + plain()[4:], "version 1 or 2"),
    "empty.pmtiles": (b"", "not a PMTiles archive"),
    "header-alone.pmtiles": (plain()[:HEADER_BYTES], "truncated"),
}

HOSTILE: dict[str, tuple[bytes, str]] = {
    "four-billion-tiles-in-a-run.pmtiles": (
        one((zxy_to_tileid(17, 0, 0), 2**32, 4, 1)),
        "more than 100,000,000 tiles",
    ),
    "run-beyond-the-last-zoom.pmtiles": (one((LAST_ID, 2**62, 4, 1)), "a run of tiles"),
    "run-into-the-next-entry.pmtiles": (
        archive(directory((5, 3, 4, 1), (7, 1, 4, 1)), b"tile"),
        "a run of tiles",
    ),
    "id-beyond-the-last-zoom.pmtiles": (one((2**62 * 3 // 2, 1, 4, 1)), "invalid zoom"),
    "ids-that-wrap.pmtiles": (
        archive(b"\3" + number(2**63 - 1) * 3 + b"\1" * 9, b"tile"),
        "not in order",
    ),
    "ids-that-repeat.pmtiles": (
        archive(directory((5, 1, 4, 1), (5, 1, 4, 1)), b"tile"),
        "not in order",
    ),
    "number-without-end.pmtiles": (archive(b"\x80" * 100_000), "truncated"),
    "number-of-many-bytes.pmtiles": (
        archive(b"\1\1\1\1" + b"\x80" * 100_000 + b"\1"),
        "a number beyond any meaning",
    ),
    "four-billion-entries.pmtiles": (
        archive(directory((0, 1, 4, 1), count=2**32), b"tile"),
        "a directory is truncated",
    ),
    "directory-of-no-entries.pmtiles": (archive(b"\0"), "an empty directory"),
    "directory-that-unpacks-to-a-gigabyte.pmtiles": (
        archive(gzip.compress(bytes(1 << 30)), packed=GZIP),
        "unpacks to more than",
    ),
    "directory-of-gzip-cut-off.pmtiles": (
        archive(gzip.compress(directory((0, 1, 4, 1)))[:-9], b"tile", packed=GZIP),
        "gzip is truncated",
    ),
    "directory-that-is-no-gzip.pmtiles": (plain(packed=GZIP), "gzip cannot be unpacked"),
    "directory-of-5-megabytes.pmtiles": (
        archive(directory((0, 1, 4, 1)), bytes(5 << 20), root_length=5 << 20),
        "a directory of 5,242,880 bytes",
    ),
    "directory-that-lists-itself.pmtiles": (_in_circles(20, 1), "nested too deeply"),
    "directories-that-list-each-other.pmtiles": (_in_circles(30, 3), "of another directory"),
    "directory-listed-twice.pmtiles": (with_leaves(lambda leaf: leaf // 2), "not in order"),
    "directory-beyond-the-end.pmtiles": (one((0, 0, 99, 1)), "points beyond its end"),
    "directories-that-overlap.pmtiles": (_overlapping_leaves(), "damaged"),
    "root-beyond-the-end.pmtiles": (plain(root_offset=2**63), "truncated"),
    "root-longer-than-the-file.pmtiles": (plain(root_length=99_999), "truncated"),
    "tile-beyond-the-end.pmtiles": (one((0, 1, 5, 1)), "points beyond its end"),
    "tile-of-exabytes.pmtiles": (one((0, 1, 2**62, 1)), "points beyond its end"),
    "tile-without-an-offset.pmtiles": (one((0, 1, 4, 0)), "has no offset"),
}
