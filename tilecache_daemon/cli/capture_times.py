"""Capture times on the command line of `tilecache import`, and warnings about them."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import click

from tilecache_daemon.cli.sizes import format_count
from tilecache_daemon.ingest.capture_times import (
    CapturedFrom,
    NoCaptureTimeError,
    read_picture_time,
)
from tilecache_daemon.ingest.found import printable
from tilecache_daemon.ingest.importer import ImportOptions, TileImporter

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ADVICE: Final = (
    "If the images are older, run it again with --captured-at TIME --update-metadata; without "
    "--update-metadata, stored tiles keep their capture time."
)


class CapturedFromParam(click.ParamType):  # type: ignore[type-arg]
    """What says when images were taken: a word, or the path of a picture, of which the time."""

    name = "captured-from"

    def convert(self, value: Any, _: Any, context: click.Context | None) -> CapturedFrom | datetime:
        """As `click.ParamType`."""
        if isinstance(value, (CapturedFrom, datetime)):
            return value
        words = [word.value for word in CapturedFrom]
        if value in words:
            return CapturedFrom(value)
        if not Path(value).is_file():
            self.fail(f"{value!r} is neither {', '.join(words)} nor a picture", ctx=context)
        try:
            return read_picture_time(Path(value))
        except NoCaptureTimeError as error:
            self.fail(f"{value}: {error}", ctx=context)


def describe_captures(
    source: Path, importer: TileImporter, options: ImportOptions
) -> Iterator[str]:
    """Sentences about stored tiles that kept their capture time, and about modification times
    that are hardly those of the images."""
    counts = importer.counts
    stored = counts.already_present + counts.updated
    if stored and options.captures_given and not options.update_metadata:
        yield (
            f"{format_count(stored, 'tile')} that are stored already keep their capture time; "
            "--update-metadata corrects it."
        )
    if stored and options.update_metadata and not options.captures_given:
        yield (
            f"{format_count(stored, 'tile')} that are stored already keep their capture time; "
            "--captured-at or --captured-from corrects it, too."
        )
    taken = counts.inserted + counts.downgraded + counts.replaced
    if options.captures_given:
        taken += counts.updated
    modified = options.captured_at is None and options.captured_from is CapturedFrom.MODIFIED
    if taken and modified and (why := _suspicion(source, importer)):
        yield f"{why} {_ADVICE}"


def _suspicion(source: Path, importer: TileImporter) -> str:
    """Why modification times are hardly those of the images; empty if nothing is odd."""
    span = importer.captures
    first, last = (_EPOCH + timedelta(microseconds=us) for us in (span.first_us, span.last_us))
    if not source.is_dir():
        return (
            f"All images have the capture time {_format(first)}, when {printable(source.name)} "
            "was last modified."
        )
    if span.count > 1 and first == last:
        return f"All images have the capture time {_format(first)}, when each was last modified."
    if first.date() == datetime.now(timezone.utc).date():
        return (
            f"All images have capture times of today, from {_format(first)} to {_format(last)}, "
            "when they were last modified: copying them may have changed that."
        )
    return ""


def _format(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
