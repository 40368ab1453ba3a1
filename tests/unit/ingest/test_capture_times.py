"""Capture times in EXIF, as cameras and other programs write them."""

from datetime import datetime, timezone
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from tilecache_daemon.ingest.capture_times import NoCaptureTimeError, read_exif_time

NOON = datetime(2026, 6, 21, 12, tzinfo=timezone.utc)
GPS_NOON = {GPS.GPSDateStamp: "2026:06:21", GPS.GPSTimeStamp: (12.0, 0.0, 0.0)}
NO_DATE = "0000:00:00 00:00:00"


def image(
    tags: dict[int, Any], position: dict[int, Any] | None = None, kind: str = "JPEG"
) -> BytesIO:
    """An image with EXIF."""
    exif = Image.Exif()
    exif[Base.Make] = "a camera"
    exif.get_ifd(IFD.Exif).update(tags)
    exif.get_ifd(IFD.GPSInfo).update(position or {})
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file


def original(text: str, offset: str | None = None) -> dict[int, Any]:
    tags = {Base.DateTimeOriginal: text}
    return tags | ({} if offset is None else {Base.OffsetTimeOriginal: offset})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("tags", "position"),
    [
        (original("2026:06:21 12:00:00"), {}),
        (original("2026:06:21 14:00:00", "+02:00"), {}),
        (original("2026:06:21 06:30:00", "-05:30"), {}),
        (original("2026:06:21 12:00:00", "      "), {}),
        (original("2026:06:21 12:00:00\0", "\0"), {}),
        ({}, GPS_NOON),
        (original(NO_DATE), GPS_NOON),
        (original("2026:06:21 12:00:00"), GPS_NOON | {GPS.GPSDateStamp: "1999:08:22"}),
    ],
)
def test_the_time_is_that_of_the_original_else_that_of_the_position(
    tags: dict[int, Any], position: dict[int, Any], kind: str
) -> None:
    assert read_exif_time(image(tags, position, kind)) == NOON


@pytest.mark.parametrize(
    ("tags", "position"),
    [
        ({}, {}),
        (original(NO_DATE), {}),
        (original("21.06.2026 12:00"), {}),
        (original("0001:01:01 00:00:00", "+02:00"), {}),
        (original("2026:06:21 12:00:00", "summer"), {}),
        ({}, {GPS.GPSDateStamp: "2026:06:21"}),
        ({}, GPS_NOON | {GPS.GPSTimeStamp: (12.0, 0.0)}),
        ({}, GPS_NOON | {GPS.GPSTimeStamp: (IFDRational(1, 0), 0.0, 0.0)}),
        ({}, GPS_NOON | {GPS.GPSTimeStamp: (25.0, 0.0, 0.0)}),
    ],
)
def test_anything_else_is_no_time(tags: dict[int, Any], position: dict[int, Any]) -> None:
    with pytest.raises(NoCaptureTimeError):
        read_exif_time(image(tags, position))
