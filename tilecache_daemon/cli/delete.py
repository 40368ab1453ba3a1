"""`tilecache delete`."""

from datetime import datetime
from pathlib import Path

import click

from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM, SOURCE_NUMBERS
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import Region
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    json_option,
    message_to_dict,
    print_json_line,
)
from tilecache_daemon.cli.regions import optional_region_options
from tilecache_daemon.cli.removal import (
    Removed,
    ask,
    progress_bar,
    removal_options,
    require_answer,
)
from tilecache_daemon.cli.sizes import format_tiles
from tilecache_daemon.cli.tiles import source_choice


@click.command("delete")
@click.argument("tile_uuids", metavar="[TILE_UUID]...", nargs=-1)
@optional_region_options
@click.option(
    "--zoom", "zooms", type=click.IntRange(0, MAX_ZOOM), multiple=True, help="Only this zoom."
)
@click.option("--source", "sources", type=source_choice, multiple=True, help="Only this source.")
@click.option(
    "--captured-before",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Only earlier captures (UTC).",
)
@click.option("--flight", metavar="UUID", help="Only tiles of this flight.")
@click.option(
    "--include-pending-uploads",
    is_flag=True,
    help="Also tiles that wait for upload; what they hold is lost.",
)
@removal_options
@admin_socket_option
@json_option
@click.pass_context
def delete_command(
    context: click.Context,
    tile_uuids: tuple[str, ...],
    region: Region | None,
    zooms: tuple[int, ...],
    sources: tuple[str, ...],
    captured_before: datetime | None,
    flight: str | None,
    include_pending_uploads: bool,
    dry_run: bool,
    yes: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Delete tiles, by their ids or by what they have in common.

    Of several filters all must hold; --zoom and --source may be given more than
    once, and any of them will do. Tiles that wait for upload stay. A deleted tile is
    no longer found; its file is listed until it is removed, which `tilecache
    evictions remove` does.

    \b
    tilecache delete 17f7ac7e-6c25-5050-a7cd-b6578cd5f323
    tilecache delete --source googlemaps --bbox 44,22,53,41 --dry-run
    tilecache delete --circle 50.45,30.52,5000 --zoom 17 --zoom 18
    tilecache delete --captured-before 2026-01-01 --yes

    With --json: a tile a line, and the summary in the last one.

    Exit codes: 0 done, 1 some ids name no tile, some tiles wait for upload, or the
    answer was no, 2 wrong usage, or nobody to ask and no --yes, 3 no daemon answers,
    4 refused by the daemon.
    """
    filters = (region, zooms, sources, captured_before, flight)
    if bool(tile_uuids) == any(filters):
        raise click.UsageError("Give ids, or at least one filter, and not both.")
    require_answer(yes=yes, dry_run=dry_run)
    request = pb.DeleteTilesRequest(
        tile_uuids=tile_uuids,
        region=region,
        zooms=zooms,
        sources=[SOURCE_NUMBERS[source] for source in sources],
        flight_id=flight,
        include_pending_uploads=include_pending_uploads,
        dry_run=dry_run,
    )
    if captured_before:
        request.captured_before.FromDatetime(captured_before)
    with connect(socket_path) as client:
        total_bytes = None if yes or dry_run else _ask(client, request)
        removed = Removed(_print_tile if as_json else None)
        summary = _delete(client, request, removed, total_bytes, hidden=as_json)
    if as_json:
        print_json_line({"summary": message_to_dict(summary, zeros=True)})
    else:
        _print(summary, removed)
    left = summary.pending_upload_count or summary.not_found_tile_uuids
    context.exit(ExitCode.IN_PART if left else ExitCode.DONE)


def _ask(client: TileCacheClient, request: pb.DeleteTilesRequest) -> int:
    """The size of what goes, in bytes."""
    trial = pb.DeleteTilesRequest()
    trial.CopyFrom(request)
    trial.dry_run = True
    found = _delete(client, trial, Removed(), None, hidden=False)
    if found.deleted_count:
        ask(f"This deletes {format_tiles(found.deleted_count, found.freed_bytes)}. Go on?")
    return found.freed_bytes


def _delete(
    client: TileCacheClient,
    request: pb.DeleteTilesRequest,
    removed: Removed,
    total_bytes: int | None,
    *,
    hidden: bool,
) -> pb.DeletionSummary:
    summary = pb.DeletionSummary()
    text = "Looking" if request.dry_run else "Deleting"
    with progress_bar(text, total_bytes, hidden=hidden) as advance:
        for answer in client.admin.DeleteTiles(request):
            advance(removed.add(answer.tiles))
            if answer.HasField("summary"):
                summary = answer.summary
    return summary


def _print_tile(tile: pb.EvictedTile) -> None:
    print_json_line({"tile": message_to_dict(tile)})


def _print(summary: pb.DeletionSummary, removed: Removed) -> None:
    went = format_tiles(summary.deleted_count, summary.freed_bytes)
    if summary.dry_run:
        click.echo(f"Would delete {went}. Nothing was changed.")
    else:
        click.echo(f"Deleted {went}.")
    removed.print()
    if summary.pending_upload_count:
        stay = "would stay" if summary.dry_run else "stay"
        click.echo(
            f"{summary.pending_upload_count:,} tiles that match {stay} because they wait for "
            "upload; --include-pending-uploads takes them too."
        )
    for tile_uuid in summary.not_found_tile_uuids:
        click.echo(f"{tile_uuid}: there is no such tile", err=True)
    if summary.deleted_count and not summary.dry_run:
        click.echo("Their files are still there: remove them with `tilecache evictions remove`.")
