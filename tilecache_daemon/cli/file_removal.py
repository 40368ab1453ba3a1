"""`--remove-files` of `evict` and `delete`: the second step of a removal, after the first."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import EvictedTile
from tilecache_daemon.cli.evictions import (
    AbsentFiles,
    RemovedFiles,
    describe_listed,
    open_tile_files,
    remove_listed,
)
from tilecache_daemon.cli.output import Command
from tilecache_daemon.cli.removal import confirm
from tilecache_daemon.cli.roots import root_option
from tilecache_daemon.cli.tile_files import TileFiles


def remove_files_options(command: Command) -> Command:
    """Adds `--remove-files` and `--root`."""
    return click.option(
        "--remove-files",
        is_flag=True,
        help="Then remove all listed files below --root, as `tilecache evictions remove` does.",
    )(root_option(command))


def check_root_option(root: Path | None, *, remove_files: bool) -> None:
    """Ends the command if it has a root that nothing needs."""
    if root and not remove_files:
        raise click.UsageError("--root is only for --remove-files.")


class FileRemoval:
    """The removal of all listed files, if it is wanted. The root is locked and checked first, so
    that a wrong one is refused before a row is deleted."""

    def __init__(self, client: TileCacheClient, root: Path | None, *, wanted: bool) -> None:
        self._client = client
        self._given_root = root
        self._wanted = wanted
        self._files: TileFiles | None = None
        self._listed = ""
        self._removed: RemovedFiles | None = None
        self._absent = AbsentFiles()
        self._opened = ExitStack()

    def __enter__(self) -> "FileRemoval":
        if self._wanted:
            self._files = self._opened.enter_context(
                open_tile_files(self._client, self._given_root)
            )
            self._listed = describe_listed(self._client)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def confirm(self, first_step: str, tile_count: int) -> None:
        """Asks whether to do both steps, of which the first is described, if there is anything to
        do; ends the command if that is declined."""
        if self._files:
            if tile_count or self._listed:
                confirm(f"{first_step} and removes {self._describe()}. Continue?")
        elif tile_count:
            confirm(f"{first_step}. Continue?")

    def look_up(self, tile: EvictedTile) -> None:
        """In a dry run: looks whether the file of a tile is there; prints on stderr if not."""
        if not self._files:
            return
        try:
            if not self._files.exists(tile.file_path):
                self._absent.add(tile.file_path, "not found")
        except (OSError, ValueError) as error:
            self._absent.add(tile.file_path, str(error))

    def remove(self, *, dry_run: bool, hidden: bool) -> None:
        """Removes the listed files, if that is wanted."""
        if self._files and not dry_run:
            self._removed = remove_listed(self._client, self._files, hidden=hidden)

    @property
    def complete(self) -> bool:
        """Whether all files that were to be removed were, or would be."""
        return not self._absent.count and (self._removed is None or self._removed.complete)

    def print(self, tile_count: int, *, dry_run: bool) -> None:
        """Prints what became of the files of so many tiles, or would."""
        if self._removed:
            click.echo(self._removed)
        elif self._files:
            self._absent.finish()
            absent = f" Not found: {self._absent.count:,}." if self._absent.count else ""
            click.echo(f"Would remove {self._describe()}.{absent}")
        elif tile_count and not dry_run:
            click.echo("The files still exist; `tilecache evictions remove` removes them.")

    def json_fields(self) -> dict[str, Any]:
        """For the summary; null where no files were to be removed."""
        removed = self._removed or (None, None, None)
        names = ("removed_file_count", "not_found_file_count", "remaining_file_count")
        return dict(zip(names, removed, strict=True))

    def _describe(self) -> str:
        assert self._files is not None
        listed = f" and {self._listed} that are listed already" if self._listed else ""
        return f"their files{listed} below {self._files.root}"
