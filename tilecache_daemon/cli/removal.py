"""What the commands that remove something share: they can be tried, and ask before."""

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

MAX_SHOWN_TILES = 10


def removal_options(command: Command) -> Command:
    """Adds `--dry-run` and `--yes`."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only say what would go."),
    ):
        command = option(command)
    return command


def require_answer(*, yes: bool, dry_run: bool) -> None:
    """Ends the command where it would have to ask and there is nobody."""
    if not (yes or dry_run or sys.stdin.isatty()):
        fail(ExitCode.USAGE, "there is no terminal to ask on; give --yes, or try it with --dry-run")


def ask(question: str) -> None:
    """Ends the command if the answer is no."""
    click.confirm(question, abort=True, err=True)


@contextmanager
def progress_bar(
    text: str, total_bytes: int | None, *, hidden: bool = False
) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with the bytes of each step. On stderr, where that
    is a terminal."""
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


class Removed:
    """Tiles that went, or would go: the first of them for people, all for programs."""

    def __init__(self, take: Callable[[EvictedTile], Any] | None = None) -> None:
        self._take = take
        self._first: list[EvictedTile] = []
        self._count = 0

    def add(self, tiles: Iterable[EvictedTile]) -> int:
        """Takes note of some more; gives their size in bytes."""
        size_bytes = 0
        for tile in tiles:
            size_bytes += tile.disk_bytes
            self._count += 1
            if self._take:
                self._take(tile)
            elif len(self._first) < MAX_SHOWN_TILES:
                self._first.append(tile)
        return size_bytes

    def print(self) -> None:
        """The first of them, a line each."""
        for tile in self._first:
            click.echo(f"  {describe_tile(tile)}")
        if self._count > len(self._first):
            click.echo(f"  ... and {self._count - len(self._first):,} more; --json lists all")


def describe_tile(tile: EvictedTile) -> str:
    """A tile in a line."""
    key = tile.key
    used = "never used"
    if tile.HasField("accessed_at"):
        used = f"last used {tile.accessed_at.ToDatetime():%Y-%m-%d %H:%M}"
    return f"{key.zoom}/{key.x}/{key.y}  {tile.file_path}  {format_size(tile.disk_bytes)}, {used}"
