"""`tilecache evictions`: the second step, in which files go."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import click

from tilecache.client import TileCacheClient
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    json_option,
    message_to_dict,
    print_json_line,
)
from tilecache_daemon.cli.removal import (
    MAX_SHOWN_TILES,
    ask,
    describe_tile,
    progress_bar,
    removal_options,
    require_answer,
)
from tilecache_daemon.cli.sizes import format_size

PAGE_SIZE: Final = 1_000
CALL_TIMEOUT_S: Final = 30

root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The tile directory that stored paths are relative to.",
)


@click.group(
    epilog="Exit codes: 0 done, 1 some stay on the list, 2 wrong usage, or nobody to ask and no "
    "--yes, 3 no daemon answers, 4 refused by the daemon.",
)
def evictions_command() -> None:
    """Remove the files of tiles that were evicted, deleted or replaced.

    Such a tile is no longer found, but its file may still be there; it stays on the
    list until somebody confirms that the file is gone.

    \b
    tilecache evictions list
    tilecache evictions remove --root /srv/tiles
    """


@evictions_command.command("list")
@admin_socket_option
@json_option
def list_command(socket_path: Path, as_json: bool) -> None:
    """List what is to be removed, oldest eviction first.

    With --json: one a line.
    """
    with connect(socket_path) as client:
        for page in _pages(client):
            for tile in page:
                if as_json:
                    print_json_line(message_to_dict(tile))
                else:
                    reason = pb.EvictionReason.Name(tile.reason).removeprefix("EVICTION_REASON_")
                    click.echo(
                        f"{tile.eviction_id:>8}  {tile.evicted_at.ToDatetime():%Y-%m-%d %H:%M}  "
                        f"{reason.lower():17}  {describe_tile(tile)}"
                    )


@evictions_command.command("confirm")
@click.argument("eviction_ids", metavar="[ID]...", nargs=-1, type=int)
@click.option("--all-gone", is_flag=True, help="All whose file is not below --root any more.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The tile directory that stored paths are relative to.",
)
@admin_socket_option
@click.pass_context
def confirm_command(
    context: click.Context,
    eviction_ids: tuple[int, ...],
    all_gone: bool,
    root: Path | None,
    socket_path: Path,
) -> None:
    """Say that files are gone. Removes no file itself.

    \b
    tilecache evictions confirm 17 18
    tilecache evictions confirm --all-gone --root /srv/tiles
    """
    if bool(eviction_ids) == all_gone or all_gone != (root is not None):
        raise click.UsageError("Give ids, or --all-gone with --root.")
    with connect(socket_path) as client:
        if root is None:
            confirmed, left = _confirm_ids(client, eviction_ids)
        else:
            confirmed, left = _confirm_gone(client, TileDirectory(root))
    click.echo(f"Confirmed {confirmed:,}.")
    for line in left[:MAX_SHOWN_TILES]:
        click.echo(line, err=True)
    if len(left) > MAX_SHOWN_TILES:
        click.echo(f"... and {len(left) - MAX_SHOWN_TILES:,} more", err=True)
    context.exit(ExitCode.IN_PART if left else ExitCode.DONE)


@evictions_command.command("remove")
@root_option
@removal_options
@admin_socket_option
@click.pass_context
def remove_command(
    context: click.Context, root: Path, dry_run: bool, yes: bool, socket_path: Path
) -> None:
    """Remove all files on the list, and confirm those that are gone.

    Nothing outside of the root directory is touched. A file that is missing counts
    as gone; one that cannot be removed stays on the list, and the exit code is 1.

    \b
    tilecache evictions remove --root /srv/tiles --dry-run
    tilecache evictions remove --root /srv/tiles --yes
    """
    require_answer(yes=yes, dry_run=dry_run)
    directory = TileDirectory(root)
    with connect(socket_path) as client:
        usage = client.admin.GetStorageUsage(pb.GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S)
        waiting = usage.pending_removal
        listed = f"{waiting.tile_count:,} files ({format_size(waiting.used_bytes)})"
        if dry_run:
            _list_files(client, directory)
            click.echo(f"Would remove {listed} below {directory.path}. Nothing was changed.")
            return
        if waiting.tile_count and not yes:
            ask(f"This removes {listed} below {directory.path}. Go on?")
        removed, left = _remove(client, directory, waiting.used_bytes)
    click.echo(f"Removed and confirmed {removed:,}; {left:,} stay on the list.")
    context.exit(ExitCode.IN_PART if left else ExitCode.DONE)


class TileDirectory:
    """The directory that the tiles' files lie in, and nothing beside it."""

    def __init__(self, root: Path) -> None:
        self.path = root.resolve()

    def find(self, file_path: str) -> Path:
        """Where a stored path leads; raises ValueError if that is not in the directory."""
        parts = PurePosixPath(file_path).parts
        path = self.path.joinpath(*parts)
        if not parts or ".." in parts or not path.parent.resolve().is_relative_to(self.path):
            raise ValueError(f"{file_path}: does not lie in {self.path}")
        return path

    def remove(self, file_paths: Sequence[str]) -> dict[str, str]:
        """Removes files, for good; those that are still there, and why."""
        problems: dict[str, str] = {}
        changed: set[Path] = set()
        for file_path in file_paths:
            try:
                path = self.find(file_path)
                path.unlink(missing_ok=True)
                changed.add(path.parent)
            except NotADirectoryError:
                continue
            except (OSError, ValueError) as error:
                problems[file_path] = str(error)
        for parent in changed:
            _sync(parent)
        return problems


def _sync(directory: Path) -> None:
    """A file that comes back when the power goes would be listed nowhere."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pages(client: TileCacheClient) -> Iterator[Sequence[pb.EvictedTile]]:
    token = ""
    while True:
        request = pb.ListEvictionsRequest(page_size=PAGE_SIZE, page_token=token)
        answer = client.admin.ListEvictions(request, timeout=CALL_TIMEOUT_S)
        yield answer.tiles
        token = answer.next_page_token
        if not token:
            return


def _confirm(client: TileCacheClient, eviction_ids: Sequence[int]) -> list[bool]:
    if not eviction_ids:
        return []
    request = pb.ConfirmEvictionsRequest(eviction_ids=eviction_ids)
    return list(client.admin.ConfirmEvictions(request, timeout=CALL_TIMEOUT_S).confirmed)


def _confirm_ids(client: TileCacheClient, eviction_ids: Sequence[int]) -> tuple[int, list[str]]:
    """How many were on the list, and a line for each that was not."""
    found = _confirm(client, eviction_ids)
    missing = [
        f"{eviction_id}: is not on the list"
        for eviction_id, confirmed in zip(eviction_ids, found, strict=True)
        if not confirmed
    ]
    return sum(found), missing


def _confirm_gone(client: TileCacheClient, directory: TileDirectory) -> tuple[int, list[str]]:
    """How many are gone, and a line for each whose file is still there."""
    confirmed, left = 0, []
    for page in _pages(client):
        gone = []
        for tile in page:
            try:
                there = os.path.lexists(directory.find(tile.file_path))
            except ValueError as error:
                left.append(str(error))
                continue
            if there:
                left.append(f"{tile.file_path}: is still there")
            else:
                gone.append(tile.eviction_id)
        confirmed += sum(_confirm(client, gone))
    return confirmed, left


def _list_files(client: TileCacheClient, directory: TileDirectory) -> None:
    for page in _pages(client):
        for tile in page:
            try:
                click.echo(str(directory.find(tile.file_path)))
            except ValueError as error:
                click.echo(str(error), err=True)


def _remove(client: TileCacheClient, directory: TileDirectory, total_bytes: int) -> tuple[int, int]:
    """How many were removed and confirmed, and how many stay; says why on stderr."""
    removed, left = 0, 0
    with progress_bar("Removing", total_bytes) as advance:
        for page in _pages(client):
            problems = directory.remove([tile.file_path for tile in page])
            for problem in problems.values():
                click.echo(problem, err=True)
            gone = [tile.eviction_id for tile in page if tile.file_path not in problems]
            removed += sum(_confirm(client, gone))
            left += len(page) - len(gone)
            advance(sum(tile.disk_bytes for tile in page))
    return removed, left
