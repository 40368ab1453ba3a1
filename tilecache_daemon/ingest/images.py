"""Checks from its bytes whether a file is an image that can be a tile."""

from io import BytesIO
from typing import Final, NamedTuple

from PIL import Image, UnidentifiedImageError

SUFFIXES: Final = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""The accepted formats by Pillow's names, with the suffix of their files."""

MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""More than any tile has. A larger file is not read into memory."""

_END_MARKERS: Final = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_PADDING_BYTES: Final = 1024  # some encoders append bytes after the end marker

# Pillow loads its readers when the first image is opened. That is not thread-safe.
Image.init()


class UnreadableImageError(ValueError):
    """The bytes are not a complete image of an accepted format."""


class ImageHeader(NamedTuple):
    """The contents of an image's header."""

    suffix: str
    edge_pixels: int


def read_header(content: bytes) -> ImageHeader:
    """The format and size of a square image; raises UnreadableImageError.

    Checks that the file has a known header and is not truncated. The pixels are not
    decoded.
    """
    try:
        with Image.open(BytesIO(content), formats=tuple(SUFFIXES)) as image:
            kind, (width, height) = image.format or "", image.size
            image.verify()
    # Pillow's readers raise SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(_describe(error, content)) from error
    if _END_MARKERS.get(kind, b"") not in content[-_PADDING_BYTES:]:
        raise UnreadableImageError(f"the {kind} image is truncated")
    if width != height:
        raise UnreadableImageError(f"the image is {width} by {height} pixels, not square")
    return ImageHeader(SUFFIXES[kind], width)


def _describe(error: Exception, content: bytes) -> str:
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG or WebP image"
    return f"the image is damaged: {error}"
