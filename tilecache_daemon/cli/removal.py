"""Shared by the commands that remove something: dry runs, confirmation, progress."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tilecache.v1.tile_cache_admin_pb2 import EvictedTile
from tilecache_daemon.cli.output import Command, ExitCode, fail
from tilecache_daemon.cli.sizes import format_size

MAX_LISTED_TILES = 10


def removal_options(command: Command) -> Command:
    """Adds `--dry-run` and `--yes`."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
        click.option("--dry-run", is_flag=True, help="Only show what would be removed."),
    ):
        command = option(command)
    return command


def policy_options(command: Command) -> Command:
    """Adds `--dry-run` and `--yes` to a command that relabels."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
        click.option("--dry-run", is_flag=True, help="Only show what would be relabelled."),
    ):
        command = option(command)
    return command


def pinned_option(command: Command) -> Command:
    """Adds `--include-pinned`."""
    return click.option(
        "--include-pinned", is_flag=True, help="Also tiles that pins hold (`tilecache pins list`)."
    )(command)


def require_confirmation(*, yes: bool, dry_run: bool) -> None:
    """Ends the command if it needs a confirmation and there is no terminal to ask on."""
    if not (yes or dry_run or sys.stdin.isatty()):
        fail(ExitCode.USAGE, "there is no terminal to ask for confirmation; use --yes or --dry-run")


def confirm(question: str) -> None:
    """Asks for confirmation; ends the command if it is declined."""
    click.confirm(question, abort=True, err=True)


@contextmanager
def progress_bar(
    text: str, total_bytes: int | None, *, hidden: bool = False
) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal.

    Yields a function to be called with the bytes of each step.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
    ) as progress:
        task = progress.add_task(text, total=total_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)


class RemovedTiles:
    """Tiles that were removed, or would be in a dry run.

    Passes each one to `on_tile`, or else keeps the first ones to print them.
    """

    def __init__(
        self,
        on_tile: Callable[[EvictedTile], Any] | None = None,
        look_up: Callable[[EvictedTile], Any] | None = None,
    ) -> None:
        """`look_up` is called with each one, too."""
        self._on_tile = on_tile
        self._look_up = look_up
        self._first: list[EvictedTile] = []
        self._count = 0

    def add(self, tiles: Iterable[EvictedTile]) -> int:
        """Adds tiles; returns their size in bytes."""
        size_bytes = 0
        for tile in tiles:
            size_bytes += tile.disk_bytes
            self._count += 1
            if self._look_up:
                self._look_up(tile)
            if self._on_tile:
                self._on_tile(tile)
            elif len(self._first) < MAX_LISTED_TILES:
                self._first.append(tile)
        return size_bytes

    def print(self) -> None:
        """Prints the first tiles, one a line."""
        for tile in self._first:
            click.echo(f"  {describe_tile(tile)}")
        if self._count > len(self._first):
            click.echo(f"  ... and {self._count - len(self._first):,} more; --json lists all")


def describe_tile(tile: EvictedTile) -> str:
    """A tile on one line."""
    key = tile.key
    used = "never used"
    if tile.HasField("accessed_at"):
        used = f"last used {tile.accessed_at.ToDatetime():%Y-%m-%d %H:%M}"
    return f"{key.zoom}/{key.x}/{key.y}  {tile.file_path}  {format_size(tile.disk_bytes)}, {used}"
