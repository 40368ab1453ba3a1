"""`tilecache evictions`: the files of tiles that are no longer stored."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import click

from tilecache.client import TileCacheClient
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    fail,
    json_option,
    message_to_dict,
    print_json_line,
)
from tilecache_daemon.cli.removal import (
    MAX_LISTED_TILES,
    confirm,
    describe_tile,
    progress_bar,
    removal_options,
    require_confirmation,
)
from tilecache_daemon.cli.roots import choose_root, describe_server, root_option
from tilecache_daemon.cli.sizes import format_count, format_size
from tilecache_daemon.cli.tile_files import RootError, TileFiles
from tilecache_daemon.paging import read_pages

PAGE_SIZE: Final = 1_000
REMOVAL_BATCH: Final = 100
"""Files of a page of the list, which is read again for each of their directories."""
SAMPLE_SIZE: Final = 100
CALL_TIMEOUT_S: Final = 30


class RemovedFiles(NamedTuple):
    """What became of the files on the list."""

    removed: int
    not_found: int
    """They were not there, and are off the list, too."""
    remaining: int

    @property
    def complete(self) -> bool:
        return not (self.not_found or self.remaining)

    def __str__(self) -> str:
        removed = f"Removed {format_count(self.removed, 'file')}"
        not_found = f"; {self.not_found:,} not found" if self.not_found else ""
        return f"{removed}{not_found}; {self.remaining:,} remain on the list."


@click.group(
    epilog="Exit codes: 0 success; 1 some files remain on the list, or the confirmation was "
    "declined; 2 wrong usage, or no terminal and no --yes; 3 the daemon does not answer; 4 refused "
    "by the daemon.",
)
def evictions_command() -> None:
    """List and remove the files of tiles that were evicted, deleted or replaced.

    Such a tile is no longer found, but its file may still exist. It stays on the
    list until its removal is confirmed.

    \b
    tilecache evictions list
    tilecache evictions remove --root /srv/tiles
    """


@evictions_command.command("list")
@admin_socket_option
@json_option
def list_command(socket_path: Path, as_json: bool) -> None:
    """List the files to remove, oldest eviction first.

    With --json: JSON Lines, one file a line.
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
@click.option(
    "--all-gone", is_flag=True, help="Confirm all entries whose file no longer exists below --root."
)
@root_option
@admin_socket_option
@click.pass_context
def confirm_command(
    context: click.Context,
    eviction_ids: tuple[int, ...],
    all_gone: bool,
    root: Path | None,
    socket_path: Path,
) -> None:
    """Confirm that files were removed. Removes no files itself.

    \b
    tilecache evictions confirm 17 18
    tilecache evictions confirm --all-gone --root /srv/tiles
    """
    if bool(eviction_ids) == all_gone or (root and not all_gone):
        raise click.UsageError("Give either ids, or --all-gone, perhaps with --root.")
    with connect(socket_path) as client:
        if eviction_ids:
            confirmed, problems = _confirm_ids(client, eviction_ids)
        else:
            with open_tile_files(client, root) as files:
                confirmed, problems = _confirm_gone(client, files)
    click.echo(f"Confirmed {format_count(confirmed, 'file')}.")
    for problem in problems[:MAX_LISTED_TILES]:
        click.echo(problem, err=True)
    if len(problems) > MAX_LISTED_TILES:
        click.echo(f"... and {len(problems) - MAX_LISTED_TILES:,} more", err=True)
    context.exit(ExitCode.IN_PART if problems else ExitCode.DONE)


@evictions_command.command("remove")
@root_option
@removal_options
@admin_socket_option
@click.pass_context
def remove_command(
    context: click.Context, root: Path | None, dry_run: bool, yes: bool, socket_path: Path
) -> None:
    """Remove all files on the list, and confirm the removals.

    Files outside the root directory are never removed, and symbolic links to
    directories are not followed. A root that is empty or has no stored tile's file
    is refused: its file system may not be mounted. A file that is not found is taken
    off the list and named, one that cannot be removed stays on the list, and the exit
    code is 1 for both.

    \b
    tilecache evictions remove --root /srv/tiles --dry-run
    tilecache evictions remove --root /srv/tiles --yes
    """
    require_confirmation(yes=yes, dry_run=dry_run)
    with connect(socket_path) as client:
        listed = describe_listed(client)
        if not listed:
            click.echo("The list is empty.")
            return
        with open_tile_files(client, root) as files:
            if dry_run:
                complete = _list_files(client, files)
                click.echo(f"Would remove {listed} below {files.root}. Nothing was changed.")
                context.exit(ExitCode.DONE if complete else ExitCode.IN_PART)
            if not yes:
                confirm(f"This removes {listed} below {files.root}. Continue?")
            removed = remove_listed(client, files)
    click.echo(removed)
    context.exit(ExitCode.DONE if removed.complete else ExitCode.IN_PART)


@contextmanager
def open_tile_files(client: TileCacheClient, root: Path | None) -> Iterator[TileFiles]:
    """The files below a root (default: the daemon's tiles directory) that is locked and has
    stored tiles' files. Ends the command otherwise."""
    tiles_directory = describe_server(client).tiles_directory
    try:
        with closing(TileFiles(choose_root(root, tiles_directory))) as files:
            files.check_root(_sample_stored(client))
            _compare_root(files.root, tiles_directory)
            yield files
    except RootError as error:
        fail(ExitCode.USAGE, str(error))


def _compare_root(root: Path, tiles_directory: str) -> None:
    """Notes on stderr if a root is not the daemon's tiles directory. That may be meant: images may
    be imported with another root, or be mounted elsewhere."""
    if tiles_directory and Path(tiles_directory).resolve() != root:
        click.echo(
            f"Note: {root} is not the daemon's tiles directory ({tiles_directory}).", err=True
        )


def describe_listed(client: TileCacheClient) -> str:
    """The number and size of the files on the list; empty if there are none."""
    usage = client.admin.GetStorageUsage(pb.GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S)
    listed = usage.pending_removal
    if not listed.tile_count:
        return ""
    return f"{format_count(listed.tile_count, 'file')} ({format_size(listed.used_bytes)})"


def _sample_stored(client: TileCacheClient) -> list[str]:
    """The file paths of some stored tiles."""
    request = pb.EvictTilesRequest(max_used_bytes=0, include_pending_uploads=True, dry_run=True)
    answers = client.admin.EvictTiles(request, timeout=CALL_TIMEOUT_S)
    first = next(answers)
    answers.cancel()
    return [tile.file_path for tile in first.tiles[:SAMPLE_SIZE]]


def _read_page(client: TileCacheClient, token: str) -> pb.ListEvictionsResponse:
    """A page of files that are removed together."""
    request = pb.ListEvictionsRequest(page_size=REMOVAL_BATCH, page_token=token)
    return client.admin.ListEvictions(request, timeout=CALL_TIMEOUT_S)


def _pages(client: TileCacheClient) -> Iterator[Sequence[pb.EvictedTile]]:
    request = pb.ListEvictionsRequest(page_size=PAGE_SIZE)
    for page in read_pages(client.admin.ListEvictions, request, CALL_TIMEOUT_S):
        yield page.tiles


def _confirm(client: TileCacheClient, eviction_ids: Sequence[int]) -> list[bool]:
    if not eviction_ids:
        return []
    request = pb.ConfirmEvictionsRequest(eviction_ids=eviction_ids)
    return list(client.admin.ConfirmEvictions(request, timeout=CALL_TIMEOUT_S).confirmed)


def _confirm_ids(client: TileCacheClient, eviction_ids: Sequence[int]) -> tuple[int, list[str]]:
    """The number of confirmed ids, and a message for each id that is not on the list."""
    confirmed = _confirm(client, eviction_ids)
    problems = [
        f"{eviction_id}: not on the list"
        for eviction_id, found in zip(eviction_ids, confirmed, strict=True)
        if not found
    ]
    return sum(confirmed), problems


def _confirm_gone(client: TileCacheClient, files: TileFiles) -> tuple[int, list[str]]:
    """The number of confirmed files, and a message for each file that still exists."""
    confirmed, problems = 0, []
    for page in _pages(client):
        gone = []
        for tile in page:
            try:
                exists = files.exists(tile.file_path)
            except (OSError, ValueError) as error:
                problems.append(f"{tile.file_path}: {error}")
                continue
            if exists:
                problems.append(f"{tile.file_path}: still exists")
            else:
                gone.append(tile.eviction_id)
        confirmed += sum(_confirm(client, gone))
    return confirmed, problems


def _list_files(client: TileCacheClient, files: TileFiles) -> bool:
    """Prints the files on the list; returns whether all of them are there."""
    absent = AbsentFiles()
    for page in _pages(client):
        for tile in page:
            try:
                if files.exists(tile.file_path):
                    click.echo(str(files.root / tile.file_path))
                else:
                    absent.add(tile.file_path, "not found")
            except (OSError, ValueError) as error:
                absent.add(tile.file_path, str(error))
    absent.finish()
    return not absent.count


def remove_listed(
    client: TileCacheClient, files: TileFiles, *, hidden: bool = False
) -> RemovedFiles:
    """Removes the files on the list and confirms the removals; prints on stderr which were not
    found and which remain."""
    removed, remaining, token = 0, 0, ""
    absent = AbsentFiles()
    usage = client.admin.GetStorageUsage(pb.GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S)
    with progress_bar("Removing", usage.pending_removal.used_bytes, hidden=hidden) as advance:
        while True:
            page = _read_page(client, token)
            paths = {tile.eviction_id: tile.file_path for tile in page.tiles}
            removal = files.remove(paths, partial(_read_ids, client, token))
            for problem in removal.problems.values():
                click.echo(problem, err=True)
            # Those that others have confirmed meanwhile are not confirmed here.
            ids = [key for key in paths if key not in removal.problems]
            for key, confirmed in zip(ids, _confirm(client, ids), strict=True):
                if confirmed and key in removal.not_found:
                    absent.add(paths[key], "not found")
                else:
                    removed += confirmed
            remaining += len(removal.problems)
            advance(sum(tile.disk_bytes for tile in page.tiles))
            token = page.next_page_token
            if not token:
                absent.finish()
                return RemovedFiles(removed, absent.count, remaining)


class AbsentFiles:
    """Names the first files that are not there on stderr."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, file_path: str, reason: str) -> None:
        self.count += 1
        if self.count <= MAX_LISTED_TILES:
            click.echo(f"{file_path}: {reason}", err=True)

    def finish(self) -> None:
        if self.count > MAX_LISTED_TILES:
            click.echo(f"... and {self.count - MAX_LISTED_TILES:,} more", err=True)


def _read_ids(client: TileCacheClient, token: str) -> set[int]:
    """The evictions of a page that are listed now, and perhaps some of the next page."""
    return {tile.eviction_id for tile in _read_page(client, token).tiles}
