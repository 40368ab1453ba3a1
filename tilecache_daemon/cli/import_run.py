"""Runs an import for the commands: progress, Ctrl-C, the report, the exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache_daemon.cli.capture_times import describe_captures
from tilecache_daemon.cli.import_report import ImportReport
from tilecache_daemon.cli.interruptions import INTERRUPTED, stop_on_interrupt
from tilecache_daemon.cli.output import ExitCode, fail
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import Source, printable
from tilecache_daemon.ingest.image_store import ImageStore
from tilecache_daemon.ingest.importer import ImportOptions, TileImporter
from tilecache_daemon.ingest.unpacking import NoRoomError, UnpackDirectory


def run_import(
    client: TileCacheClient,
    options: ImportOptions,
    unpack_directory: UnpackDirectory | None,
    source: Source,
    report: ImportReport,
    image_store: ImageStore | None = None,
) -> None:
    """Imports, then prints the report even after a failure, and exits with its code."""
    failure: Exception | None = None
    with _progress_bar(report) as advance:
        importer = TileImporter(
            client,
            options,
            unpack_directory,
            report.add_refused,
            report.add_ignored,
            advance,
            image_store,
        )
        with stop_on_interrupt(importer.stopping):
            try:
                importer.run(source)
            except (CallError, SourceError, NoRoomError) as error:
                failure = error
    interrupted = importer.stopping.is_set()
    # A bundle has the capture times that the exporting daemon knew.
    warnings = [] if image_store else list(describe_captures(source.path, importer, options))
    report.print(importer.counts, interrupted, str(failure or ""), warnings)
    if isinstance(failure, CallError):
        raise failure
    if failure:
        fail(ExitCode.IN_PART, str(failure))
    if interrupted:
        sys.exit(INTERRUPTED)
    if importer.counts.refused or report.problems:
        sys.exit(ExitCode.IN_PART)


class RateColumn(ProgressColumn):
    """The number of tiles a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} tiles/s", style="progress.data.speed")


@contextmanager
def _progress_bar(report: ImportReport) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal. Yields a function to advance it."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=report.as_json or not console.is_terminal,
    ) as progress:
        task = progress.add_task(f"Importing {printable(report.source.name)}", total=report.total)
        yield lambda count: progress.advance(task, count)
