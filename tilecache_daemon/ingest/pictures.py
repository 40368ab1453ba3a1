"""Telling from its bytes whether a file is a picture that can be a tile."""

from io import BytesIO
from typing import Final, NamedTuple

from PIL import Image, UnidentifiedImageError

SUFFIXES: Final = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""Pillow's name of each type that is taken, and the suffix that its files get."""

MAX_PICTURE_BYTES: Final = 64 * 1024 * 1024
"""More than any tile has; a larger file is not read into memory."""

_ENDS: Final = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_PADDING_BYTES: Final = 1024  # what some encoders append behind the end

# Pillow loads its readers when the first picture is opened, which threads must not do at once.
Image.init()


class UnreadablePictureError(ValueError):
    """The bytes are not a whole picture of a type that is taken."""


class PictureHeader(NamedTuple):
    """What a picture's header says."""

    suffix: str
    edge_pixels: int


def read_header(content: bytes) -> PictureHeader:
    """The type and size of a square picture; raises UnreadablePictureError.

    The pixels are not decoded: what is checked is that the file has a known
    header and reaches to its own end.
    """
    try:
        with Image.open(BytesIO(content), formats=tuple(SUFFIXES)) as image:
            kind, (width, height) = image.format or "", image.size
            image.verify()
    # Pillow's readers raise SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadablePictureError(_describe(error, content)) from error
    if _ENDS.get(kind, b"") not in content[-_PADDING_BYTES:]:
        raise UnreadablePictureError(f"the {kind} picture is cut off before its end")
    if width != height:
        raise UnreadablePictureError(f"the picture is {width} by {height} pixels, not square")
    return PictureHeader(SUFFIXES[kind], width)


def _describe(error: Exception, content: bytes) -> str:
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG or WebP picture"
    return f"the picture is damaged: {error}"
