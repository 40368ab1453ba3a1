"""Capture times of images: from EXIF and from sidecar files."""

import json
import re
from datetime import datetime, timezone
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

NO_CAPTURE_TIME: Final = "NO_CAPTURE_TIME"
MAX_SIDECAR_BYTES: Final = 64 * 1024
"""More than any has: quality metadata are limited to less."""
SIDECAR_NAME: Final = re.compile(r".*\.(png|jpe?g|webp)\.json", re.IGNORECASE)
"""The files beside images that `read_sidecar` reads."""

_EXIF_FORMAT: Final = "%Y:%m:%d %H:%M:%S"


class CapturedFrom(Enum):
    """What says when an image was taken."""

    MODIFIED = "modified"
    EXIF = "exif"
    SIDECAR = "sidecar"


class NoCaptureTimeError(ValueError):
    """Nothing says when an image was taken. The message says what was looked for."""


class Description(NamedTuple):
    """What is said about an image."""

    captured_at: Timestamp
    quality_metadata: Struct | None = None


def read_exif_time(image: Path | BytesIO) -> datetime:
    """The time in an image's EXIF: that of the original, else that of its GPS position. It is in
    UTC if EXIF names no offset. Raises NoCaptureTimeError."""
    try:
        with Image.open(image) as opened:
            exif = opened.getexif()
            original = _original_time(exif.get_ifd(IFD.Exif))
            found = original or _gps_time(exif.get_ifd(IFD.GPSInfo))
    # Pillow's readers raise SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NoCaptureTimeError(f"its EXIF cannot be read: {error}") from error
    if found is None:
        raise NoCaptureTimeError("its EXIF has no time of the original")
    return found


def read_picture_time(path: Path) -> datetime:
    """As `read_exif_time`, for a picture of any size and format that Pillow knows, such as the
    orthophoto from which tiles were cut. Only its header is read. Not thread-safe."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return read_exif_time(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_sidecar(file: Path) -> Description:
    """What the file `{file}.json` says about an image, or about all of an archive: an object with
    `captured_at` in RFC 3339 and optionally an object `quality_metadata`. Raises
    NoCaptureTimeError."""
    path = file.with_name(f"{file.name}.json")
    try:
        with path.open("rb") as sidecar:
            content = json.loads(sidecar.read(MAX_SIDECAR_BYTES))
        captured_at = Timestamp()
        captured_at.FromJsonString(content["captured_at"])
        quality = content.get("quality_metadata")
        return Description(captured_at, None if quality is None else ParseDict(quality, Struct()))
    except OSError as error:
        raise NoCaptureTimeError(f"{path.name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ParseError, RecursionError) as error:
        raise NoCaptureTimeError(
            f"{path.name}: not an object with captured_at in RFC 3339: {error}"
        ) from error


class CaptureSpan:
    """The first and the last of some capture times."""

    def __init__(self) -> None:
        self.count = 0
        self.first_us = self.last_us = 0
        """Microseconds since 1970."""

    def add(self, captured_at: Timestamp) -> None:
        micros = captured_at.ToMicroseconds()
        if not self.count:
            self.first_us = self.last_us = micros
        self.count += 1
        self.first_us = min(self.first_us, micros)
        self.last_us = max(self.last_us, micros)


def _original_time(tags: dict[int, Any]) -> datetime | None:
    text = tags.get(Base.DateTimeOriginal)
    if not isinstance(text, str):
        return None
    offset = tags.get(Base.OffsetTimeOriginal)
    try:
        moment = datetime.strptime(text.strip("\0 "), _EXIF_FORMAT).replace(tzinfo=timezone.utc)
        if isinstance(offset, str) and offset.strip("\0 "):
            zone = datetime.strptime(offset.strip("\0 "), "%z").tzinfo
            moment = moment.replace(tzinfo=zone).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
    return moment


def _gps_time(tags: dict[int, Any]) -> datetime | None:
    try:
        hours, minutes, seconds = map(int, tags[GPS.GPSTimeStamp])
        day = str(tags[GPS.GPSDateStamp]).strip("\0 ")
        text = f"{day} {hours:02}:{minutes:02}:{seconds:02}"
        return datetime.strptime(text, _EXIF_FORMAT).replace(tzinfo=timezone.utc)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
