"""Unpacks gzip within a limit."""

import zlib
from typing import Final

_MAGIC: Final = b"\x1f\x8b"
_GZIP: Final = 16 + zlib.MAX_WBITS


def is_gzipped(content: bytes) -> bool:
    """Whether this is gzip, and hence neither an image nor anything else that is expected."""
    return content.startswith(_MAGIC)


def gunzip(content: bytes, max_bytes: int) -> bytes:
    """Raises ValueError if it is damaged or larger than `max_bytes`."""
    unpacking = zlib.decompressobj(_GZIP)
    try:
        unpacked = unpacking.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise ValueError("damaged: gzip cannot be unpacked") from error
    if len(unpacked) > max_bytes:
        raise ValueError(f"damaged: gzip unpacks to more than {max_bytes:,} bytes")
    if not unpacking.eof:
        raise ValueError("damaged: gzip is truncated")
    return unpacked
