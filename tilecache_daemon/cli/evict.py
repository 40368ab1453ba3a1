"""`tilecache evict`."""

from pathlib import Path
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
    Removed,
    ask,
    progress_bar,
    removal_options,
    require_answer,
)
from tilecache_daemon.cli.sizes import format_size, format_tiles, size_option

_REASONS: Final = {
    pb.EVICTION_STOP_PENDING_UPLOADS: "what is left waits for upload, or is being written",
    pb.EVICTION_STOP_EMPTY: "nothing is left whose eviction would free anything",
}


@click.command("evict")
@size_option("--max-used", "Until no more than this is used: a ceiling.")
@size_option("--free", "Until at least this is freed.")
@click.option(
    "--include-pending-uploads",
    is_flag=True,
    help="Also tiles that wait for upload; what they hold is lost.",
)
@removal_options
@admin_socket_option
@json_option
@click.pass_context
def evict_command(
    context: click.Context,
    max_used: int | None,
    free: int | None,
    include_pending_uploads: bool,
    dry_run: bool,
    yes: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Make room: the least recently used tiles go first.

    Give one of --max-used and --free. Tiles that wait for upload stay. An evicted
    tile is no longer found; its file is listed until it is removed, which
    `tilecache evictions remove` does.

    \b
    tilecache evict --max-used 20GiB --dry-run
    tilecache evict --free 500MB --yes

    With --json: a tile a line, and the summary in the last one.

    Exit codes: 0 the goal is met, 1 it is not, or the answer was no, 2 wrong usage,
    or nobody to ask and no --yes, 3 no daemon answers, 4 refused by the daemon.
    """
    if (max_used is None) == (free is None):
        raise click.UsageError("Give one of --max-used and --free.")
    require_answer(yes=yes, dry_run=dry_run)
    request = pb.EvictTilesRequest(include_pending_uploads=include_pending_uploads, dry_run=dry_run)
    if max_used is not None:
        request.max_used_bytes = max_used
    if free is not None:
        request.free_bytes = free
    with connect(socket_path) as client:
        if not (yes or dry_run):
            _ask(client, request)
        removed = Removed(_print_tile if as_json else None)
        summary = _evict(client, request, removed, hidden=as_json)
    if as_json:
        print_json_line({"summary": message_to_dict(summary, zeros=True)})
    else:
        _print(summary, removed)
    context.exit(ExitCode.DONE if summary.goal_met else ExitCode.IN_PART)


def _ask(client: TileCacheClient, request: pb.EvictTilesRequest) -> None:
    trial = pb.EvictTilesRequest()
    trial.CopyFrom(request)
    trial.dry_run = True
    found = _evict(client, trial, Removed(), hidden=False)
    if found.evicted_count:
        ask(f"This evicts {format_tiles(found.evicted_count, found.freed_bytes)}. Go on?")


def _evict(
    client: TileCacheClient, request: pb.EvictTilesRequest, removed: Removed, *, hidden: bool
) -> pb.EvictionSummary:
    summary = pb.EvictionSummary()
    text = "Looking" if request.dry_run else "Evicting"
    with progress_bar(text, _goal_bytes(client, request), hidden=hidden) as advance:
        for answer in client.admin.EvictTiles(request):
            advance(removed.add(answer.tiles))
            if answer.HasField("summary"):
                summary = answer.summary
    return summary


def _goal_bytes(client: TileCacheClient, request: pb.EvictTilesRequest) -> int:
    """How much has to go, about."""
    if request.WhichOneof("goal") == "free_bytes":
        return request.free_bytes
    usage = client.admin.GetStorageUsage(pb.GetStorageUsageRequest(), timeout=30)
    return max(usage.total.used_bytes - request.max_used_bytes, 0)


def _print_tile(tile: pb.EvictedTile) -> None:
    print_json_line({"tile": message_to_dict(tile)})


def _print(summary: pb.EvictionSummary, removed: Removed) -> None:
    went = format_tiles(summary.evicted_count, summary.freed_bytes)
    used = format_size(summary.used_bytes)
    if summary.dry_run:
        click.echo(f"Would evict {went}; then {used} would be used. Nothing was changed.")
    else:
        click.echo(f"Evicted {went}; {used} are used now.")
    removed.print()
    if not summary.goal_met:
        click.echo(f"The goal is not met: {_REASONS.get(summary.stop, 'the reason is not known')}.")
    if summary.pending_upload_count:
        click.echo(
            f"{summary.pending_upload_count:,} tiles were passed over because they wait for upload."
        )
    if summary.evicted_count and not summary.dry_run:
        click.echo("Their files are still there: remove them with `tilecache evictions remove`.")
