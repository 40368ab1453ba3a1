"""`tilecache verify`."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import click
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
from tilecache.paths import state_directory
from tilecache.v1.tile_cache_admin_pb2 import GetStorageUsageRequest
from tilecache_daemon.cli.interruptions import INTERRUPTED
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    fail,
    json_option,
)
from tilecache_daemon.cli.removal import confirm, removal_options, require_confirmation
from tilecache_daemon.cli.roots import choose_root, describe_server, root_option
from tilecache_daemon.cli.tile_files import RootError, TileFiles
from tilecache_daemon.cli.times import parse_duration
from tilecache_daemon.cli.verify_actions import Actions, Intent, act
from tilecache_daemon.cli.verify_report import Report
from tilecache_daemon.verification.checks import CALL_TIMEOUT_S, FileChecker
from tilecache_daemon.verification.progress_log import ProgressLog, ProgressLogError, log_path
from tilecache_daemon.verification.verifier import Verifier

_NICENESS: Final = 10
"""Others get ten times as much of a processor, and it still gets on beside a busy one."""
_ABSENT_PART: Final = 10
"""A root in which more than one in so many rows has no file is not acted on."""


class _Options(NamedTuple):
    root: Path
    socket_path: Path
    with_content: bool
    acts: bool
    """Whether something is to be changed."""
    trust_root: bool
    restart: bool
    dry_run: bool
    yes: bool


@click.command("verify")
@root_option
@click.option(
    "--hash", "with_content", is_flag=True, help="Also read all files and compare SHA-256."
)
@click.option("--repair", is_flag=True, help="Delete the rows whose file is gone or damaged.")
@click.option("--remove-orphans", is_flag=True, help="Remove the images that belong to no tile.")
@click.option(
    "--include-pending-uploads",
    is_flag=True,
    help="With --repair: also tiles that wait for upload. Their content is lost.",
)
@click.option(
    "--orphan-age",
    metavar="DURATION",
    default="1h",
    show_default=True,
    callback=parse_duration,
    help="Leave orphans that came or changed more recently: their rows may follow.",
)
@click.option(
    "--trust-root",
    is_flag=True,
    help="Repair and remove even if more than a tenth of the rows have no file, or if there are "
    "no rows.",
)
@click.option("--restart", is_flag=True, help="Do not continue a verification that was stopped.")
@removal_options
@admin_socket_option
@json_option
@click.pass_context
def verify_command(
    context: click.Context,
    /,
    root: Path | None,
    repair: bool,
    remove_orphans: bool,
    include_pending_uploads: bool,
    orphan_age: timedelta,
    yes: bool,
    dry_run: bool,
    socket_path: Path,
    as_json: bool,
    **others: bool,
) -> None:
    """Compare the stored tiles with their files.

    Prints a line for each file that is missing, that has another size than its tile
    or, with --hash, other content, or that cannot be read; and for each image that
    belongs to no tile and is not on the removal list (orphan). Hidden and system
    directories, and symbolic links, are not searched for orphans.

    A verification that was stopped, by Ctrl-C or otherwise, continues when it is run
    again. It has a low priority for processors and disks.

    --repair and --remove-orphans check each file once more right before they act.
    They refuse a root in which more than a tenth of the rows have no file, and an
    empty database: an unmounted card, a wrong root and a wrong database look like
    that. Rows that wait for upload are kept, pins have no effect. The damaged file of
    a deleted row is put on the removal list.

    \b
    tilecache verify
    tilecache verify --hash --root /srv/tiles --json
    tilecache verify --repair --remove-orphans --dry-run

    With --json: JSON Lines, one finding a line, then the summary.

    Exit codes: 0 nothing is wrong, or nothing is any more; 1 something is wrong, or
    the confirmation was declined; 2 wrong usage, a root that is refused, or no terminal
    and no --yes; 3 the daemon does not answer; 4 refused by the daemon; 5 the progress
    cannot be written; 130 stopped by Ctrl-C.
    """
    intent = Intent(repair, remove_orphans, include_pending_uploads, orphan_age.total_seconds())
    acts = repair or remove_orphans
    if acts:
        require_confirmation(yes=yes, dry_run=dry_run)
    # Also that of the threads that a connection starts; the kernel derives the one for disks.
    os.nice(_NICENESS)
    report = Report(intent, as_json=as_json)
    with connect(socket_path) as client:
        options = _Options(
            root=_resolve(choose_root(root, describe_server(client).tiles_directory)),
            socket_path=socket_path.absolute(),
            acts=acts,
            dry_run=dry_run,
            yes=yes,
            **others,
        )
        with _opened_log(options) as log:
            checker = FileChecker(client, options.root, with_content=options.with_content)
            _verify(client, options, checker, log, report)
            actions = Actions(left_count=sum(report.counts.values()))
            if not dry_run and (report.to_delete or report.to_remove):
                actions = _act(client, options, checker, log, report)
        report.print_summary(str(options.root), log.position, actions, dry_run=acts and dry_run)
    context.exit(ExitCode.IN_PART if actions.left_count else ExitCode.DONE)


def _resolve(root: Path) -> Path:
    """The root without symbolic links. Ends the command if it cannot be read."""
    try:
        resolved = root.resolve(strict=True)
        os.scandir(resolved).close()
    except OSError as error:
        fail(ExitCode.USAGE, f"{root}: {error.strerror}")
    return resolved


@contextmanager
def _opened_log(options: _Options) -> Iterator[ProgressLog]:
    """The progress of this or a former run. It is kept if the command does not come to its end."""
    subject = {"root": str(options.root), "with_content": options.with_content}
    path = log_path(state_directory(), options.root, options.socket_path)
    try:
        log = ProgressLog.open(path, subject, restart=options.restart)
    except ProgressLogError as error:
        fail(ExitCode.USAGE, str(error))
    except OSError as error:
        click.echo(f"{path}: {error.strerror}: this run cannot be continued later", err=True)
        log = ProgressLog.temporary(subject)
    is_done = False
    try:
        yield log
        is_done = True
    except KeyboardInterrupt:
        click.echo("Stopped. Run it again to continue.", err=True)
        sys.exit(INTERRUPTED)
    except CallError:
        click.echo("Stopped. Run it again to continue.", err=True)
        raise
    except ProgressLogError as error:
        fail(ExitCode.FAILED, str(error))
    except RootError as error:
        fail(ExitCode.USAGE, str(error))
    except (SystemExit, click.Abort):
        is_done = True
        raise
    finally:
        log.close(done=is_done)


def _verify(
    client: TileCacheClient,
    options: _Options,
    checker: FileChecker,
    log: ProgressLog,
    report: Report,
) -> None:
    """Compares everything, from the log's position on."""
    usage = client.admin.GetStorageUsage(GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S)
    verifier = Verifier(client, options.root, checker, log, report.add)
    position = log.position
    if log.is_continued:
        click.echo(
            f"Continuing the verification of {log.started_at:%Y-%m-%d %H:%M} UTC after "
            f"{position.row_count:,} tiles and {position.file_count:,} files; --restart begins "
            "anew.",
            err=True,
        )
        verifier.repeat()
    with _progress_bars(hidden=report.as_json) as add_bar:
        rows = usage.total.tile_count
        verifier.check_rows(add_bar("Tiles", rows, position.row_count))
        _check_root(options, verifier, log)
        files = rows + usage.pending_removal.tile_count
        verifier.check_files(add_bar("Files", files, position.file_count))
    sys.stdout.flush()


def _check_root(options: _Options, verifier: Verifier, log: ProgressLog) -> None:
    """Ends the command if something is to be changed that this may be the wrong root for."""
    rows, absent = log.position.row_count, verifier.absent_count
    if not options.acts or options.trust_root:
        return
    if rows == 0:
        reason = "the database has no tiles: is it the right one?"
    elif absent * _ABSENT_PART > rows:
        reason = (
            f"{absent:,} of {rows:,} tiles have no file below {options.root}: is it the right "
            "directory, and is its file system mounted?"
        )
    else:
        return
    fail(ExitCode.USAGE, f"{reason} Nothing was changed; --trust-root goes on")


def _act(
    client: TileCacheClient,
    options: _Options,
    checker: FileChecker,
    log: ProgressLog,
    report: Report,
) -> Actions:
    """Deletes rows and removes orphans."""
    if not options.yes:
        confirm(f"About to {report.describe_plan()} below {options.root}. Continue?")
    with (
        closing(TileFiles(options.root)) as files,
        _progress_bars(hidden=report.as_json) as add_bar,
    ):
        on_progress = add_bar("Findings", sum(report.counts.values()), 0)
        return act(client, checker, files, log.paths(), report.intent, on_progress)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s", style="progress.data.speed")


@contextmanager
def _progress_bars(*, hidden: bool) -> Iterator[Callable[[str, int, int], Callable[[int], None]]]:
    """Progress bars on stderr, if that is a terminal. Yields a function that adds one with a
    total and what is completed of it, and returns a function to advance it."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Only on a terminal: elsewhere the findings would go to stderr.
        redirect_stdout=sys.stdout.isatty(),
        disable=hidden or not console.is_terminal,
    ) as progress:

        def add_bar(text: str, total: int, completed: int) -> Callable[[int], None]:
            task = progress.add_task(text, total=total, completed=completed)

            def advance(count: int) -> None:
                progress.advance(task, count)
                done = progress.tasks[task].completed
                progress.update(task, total=max(total, done))

            return advance

        yield add_bar
