"""An image is recognized by its bytes, not by its name."""

from io import BytesIO

import pytest
from PIL import Image

from tilecache_daemon.ingest.images import UnreadableImageError, read_header

SUFFIX_OF_FORMAT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def encode(kind: str, width: int = 64, height: int = 64) -> bytes:
    encoded = BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(encoded, kind)
    return encoded.getvalue()


@pytest.mark.parametrize("kind", SUFFIX_OF_FORMAT)
def test_format_and_size_are_read_from_the_header(kind: str) -> None:
    header = read_header(encode(kind, 128, 128))

    assert (header.suffix, header.edge_pixels) == (SUFFIX_OF_FORMAT[kind], 128)


@pytest.mark.parametrize("kind", SUFFIX_OF_FORMAT)
def test_an_image_that_is_truncated_anywhere_is_unreadable(kind: str) -> None:
    whole = encode(kind)

    for length in {*range(0, len(whole), 97), len(whole) - 13, len(whole) - 1}:
        with pytest.raises(UnreadableImageError):
            read_header(whole[:length])


def test_padding_after_the_end_is_accepted() -> None:
    assert read_header(encode("JPEG") + b"\0" * 16).edge_pixels == 64


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"<html>Too many requests</html>", "not a PNG, JPEG or WebP"),
        (encode("GIF"), "not a PNG, JPEG or WebP"),
        (encode("PNG", 256, 128), "256 by 128 pixels, not square"),
    ],
)
def test_an_unusable_file_is_refused_with_the_reason(content: bytes, why: str) -> None:
    with pytest.raises(UnreadableImageError, match=why):
        read_header(content)
