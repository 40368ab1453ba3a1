"""`tilecache evict`."""

from pathlib import Path
from typing import Final

import click

from tilecache.client import TileCacheClient
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache_daemon.cli.file_removal import (
    FileRemoval,
    check_root_option,
    remove_files_options,
)
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    json_option,
    message_to_dict,
    print_json_line,
)
from tilecache_daemon.cli.removal import (
    RemovedTiles,
    pinned_option,
    progress_bar,
    removal_options,
    require_confirmation,
)
from tilecache_daemon.cli.sizes import format_count, format_size, format_tiles, size_option

_REASONS: Final = {
    pb.EVICTION_STOP_PENDING_UPLOADS: "the remaining tiles wait for upload or are being written",
    pb.EVICTION_STOP_PINNED: "pins hold the remaining tiles",
    pb.EVICTION_STOP_EMPTY: "no more tiles can be evicted",
}


@click.command("evict")
@size_option("--max-used", "Evict until at most this much is used.")
@size_option("--free", "Evict until at least this much is freed.")
@click.option(
    "--include-pending-uploads",
    is_flag=True,
    help="Also evict tiles that wait for upload. Their content is lost.",
)
@pinned_option
@remove_files_options
@removal_options
@admin_socket_option
@json_option
@click.pass_context
def evict_command(
    context: click.Context,
    max_used: int | None,
    free: int | None,
    include_pending_uploads: bool,
    include_pinned: bool,
    remove_files: bool,
    root: Path | None,
    dry_run: bool,
    yes: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Evict the least recently used tiles.

    Give either --max-used or --free. Tiles that wait for upload or are pinned are
    kept. An evicted tile is no longer found. Its file exists until `tilecache evictions remove`
    removes it; --remove-files does both. The root is checked before anything is evicted.

    \b
    tilecache evict --max-used 20GiB --dry-run
    tilecache evict --free 500MB --yes
    tilecache evict --free 500MB --remove-files --root /srv/tiles --yes

    With --json: JSON Lines, one tile a line, then the summary.

    Exit codes: 0 the goal was reached; 1 it was not, files were not found or could
    not be removed, or the confirmation was declined; 2 wrong usage, or no terminal
    and no --yes; 3 the daemon does not answer; 4 refused by the daemon.
    """
    if (max_used is None) == (free is None):
        raise click.UsageError("Give either --max-used or --free.")
    check_root_option(root, remove_files=remove_files)
    require_confirmation(yes=yes, dry_run=dry_run)
    request = pb.EvictTilesRequest(
        include_pending_uploads=include_pending_uploads,
        include_pinned=include_pinned,
        dry_run=dry_run,
    )
    if max_used is not None:
        request.max_used_bytes = max_used
    if free is not None:
        request.free_bytes = free
    with connect(socket_path) as client, FileRemoval(client, root, wanted=remove_files) as files:
        if not (yes or dry_run):
            _confirm(client, request, files)
        removed = RemovedTiles(
            _print_json_tile if as_json else None, files.look_up if dry_run else None
        )
        summary = _evict(client, request, removed, hidden=as_json)
        files.remove(dry_run=dry_run, hidden=as_json)
    if as_json:
        print_json_line({"summary": message_to_dict(summary, zeros=True) | files.json_fields()})
    else:
        _print(summary, removed)
        files.print(summary.evicted_count, dry_run=dry_run)
    done = summary.goal_met and files.complete
    context.exit(ExitCode.DONE if done else ExitCode.IN_PART)


def _confirm(client: TileCacheClient, request: pb.EvictTilesRequest, files: FileRemoval) -> None:
    dry_run = pb.EvictTilesRequest()
    dry_run.CopyFrom(request)
    dry_run.dry_run = True
    found = _evict(client, dry_run, RemovedTiles(), hidden=False)
    evicts = f"This evicts {format_tiles(found.evicted_count, found.freed_bytes)}"
    files.confirm(evicts, found.evicted_count)


def _evict(
    client: TileCacheClient, request: pb.EvictTilesRequest, removed: RemovedTiles, *, hidden: bool
) -> pb.EvictionSummary:
    summary = pb.EvictionSummary()
    text = "Searching" if request.dry_run else "Evicting"
    with progress_bar(text, _goal_bytes(client, request), hidden=hidden) as advance:
        for answer in client.admin.EvictTiles(request):
            advance(removed.add(answer.tiles))
            if answer.HasField("summary"):
                summary = answer.summary
    return summary


def _goal_bytes(client: TileCacheClient, request: pb.EvictTilesRequest) -> int:
    """Approximately how many bytes have to be freed."""
    if request.WhichOneof("goal") == "free_bytes":
        return request.free_bytes
    usage = client.admin.GetStorageUsage(pb.GetStorageUsageRequest(), timeout=30)
    return max(usage.total.used_bytes - request.max_used_bytes, 0)


def _print_json_tile(tile: pb.EvictedTile) -> None:
    print_json_line({"tile": message_to_dict(tile)})


def _print(summary: pb.EvictionSummary, removed: RemovedTiles) -> None:
    evicted = format_tiles(summary.evicted_count, summary.freed_bytes)
    used = format_size(summary.used_bytes)
    if summary.dry_run:
        click.echo(f"Would evict {evicted}; {used} would remain in use. Nothing was changed.")
    else:
        click.echo(f"Evicted {evicted}; {used} remain in use.")
    removed.print()
    if not summary.goal_met:
        reasons = [_REASONS.get(stop, "unknown reason") for stop in summary.stops]
        click.echo(f"The goal was not reached: {'; '.join(reasons)}.")
    if summary.pending_upload_count:
        click.echo(f"Skipped {format_count(summary.pending_upload_count, 'tile')} pending upload.")
    if summary.pinned_count:
        skipped = format_count(summary.pinned_count, "pinned tile")
        click.echo(f"Skipped {skipped} (pins: {', '.join(summary.pin_names)}).")
