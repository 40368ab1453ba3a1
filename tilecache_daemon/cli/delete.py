"""`tilecache delete`."""

from datetime import datetime
from pathlib import Path

import click

from tilecache.client import TileCacheClient
from tilecache.identity import SOURCE_NUMBERS
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import Region
from tilecache_daemon.cli.boxes import hint_at_exchange
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
from tilecache_daemon.cli.regions import optional_region_options, zooms_option
from tilecache_daemon.cli.removal import (
    RemovedTiles,
    pinned_option,
    progress_bar,
    removal_options,
    require_confirmation,
)
from tilecache_daemon.cli.sizes import format_count, format_tiles
from tilecache_daemon.cli.tiles import source_choice
from tilecache_daemon.cli.times import Moment


@click.command("delete")
@click.argument("tile_uuids", metavar="[TILE_UUID]...", nargs=-1)
@optional_region_options
@zooms_option(required=False)
@click.option(
    "--source",
    "sources",
    type=source_choice,
    multiple=True,
    help="Only this source. May be repeated.",
)
@click.option(
    "--captured-before",
    type=Moment(),
    help="Only tiles captured before this time (UTC).",
)
@click.option("--flight", metavar="UUID", help="Only tiles of this flight.")
@click.option(
    "--include-pending-uploads",
    is_flag=True,
    help="Also delete tiles that wait for upload. Their content is lost.",
)
@pinned_option
@remove_files_options
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
    include_pinned: bool,
    remove_files: bool,
    root: Path | None,
    dry_run: bool,
    yes: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Delete tiles by id, or all tiles that match the filters.

    A tile must match every given filter. Tiles that wait for upload or are
    pinned are kept. A deleted tile is no longer found. Its file exists until `tilecache evictions
    remove` removes it; --remove-files does both. The root is checked before anything is deleted.

    \b
    tilecache delete 17f7ac7e-6c25-5050-a7cd-b6578cd5f323
    tilecache delete --source googlemaps --bbox 44,22,53,41 --dry-run
    tilecache delete --circle 50.45,30.52,5000 --zoom 17-18
    tilecache delete --captured-before 2026-01-01 --yes
    tilecache delete --zoom 19 --remove-files --root /srv/tiles --yes

    With --json: JSON Lines, one tile a line, then the summary.

    Exit codes: 0 success; 1 some ids were not found, some tiles wait for upload or
    are pinned, files were not found or could not be removed, or the confirmation was declined; 2
    wrong usage, or no terminal and no --yes; 3 the daemon does not answer; 4 refused by the daemon.
    """
    filters = (region, zooms, sources, captured_before, flight)
    if bool(tile_uuids) == any(filters):
        raise click.UsageError("Give either tile ids or at least one filter.")
    check_root_option(root, remove_files=remove_files)
    require_confirmation(yes=yes, dry_run=dry_run)
    request = pb.DeleteTilesRequest(
        tile_uuids=tile_uuids,
        region=region,
        zooms=zooms,
        sources=[SOURCE_NUMBERS[source] for source in sources],
        flight_id=flight,
        include_pending_uploads=include_pending_uploads,
        include_pinned=include_pinned,
        dry_run=dry_run,
    )
    if captured_before:
        request.captured_before.FromDatetime(captured_before)
    with connect(socket_path) as client, FileRemoval(client, root, wanted=remove_files) as files:
        total_bytes = None if yes or dry_run else _confirm(client, request, files)
        removed = RemovedTiles(
            _print_json_tile if as_json else None, files.look_up if dry_run else None
        )
        summary = _delete(client, request, removed, total_bytes, hidden=as_json)
        if not (summary.deleted_count or summary.pending_upload_count or summary.pinned_count):
            hint_at_exchange(client, zooms, region)
        files.remove(dry_run=dry_run, hidden=as_json)
    if as_json:
        print_json_line({"summary": message_to_dict(summary, zeros=True) | files.json_fields()})
    else:
        _print(summary, removed)
        files.print(summary.deleted_count, dry_run=dry_run)
    kept = summary.pending_upload_count or summary.pinned_count or summary.not_found_tile_uuids
    context.exit(ExitCode.DONE if files.complete and not kept else ExitCode.IN_PART)


def _confirm(client: TileCacheClient, request: pb.DeleteTilesRequest, files: FileRemoval) -> int:
    """Asks for confirmation; returns the size of the tiles to delete in bytes."""
    dry_run = pb.DeleteTilesRequest()
    dry_run.CopyFrom(request)
    dry_run.dry_run = True
    found = _delete(client, dry_run, RemovedTiles(), None, hidden=False)
    deletes = f"This deletes {format_tiles(found.deleted_count, found.freed_bytes)}"
    files.confirm(deletes, found.deleted_count)
    return found.freed_bytes


def _delete(
    client: TileCacheClient,
    request: pb.DeleteTilesRequest,
    removed: RemovedTiles,
    total_bytes: int | None,
    *,
    hidden: bool,
) -> pb.DeletionSummary:
    summary = pb.DeletionSummary()
    text = "Searching" if request.dry_run else "Deleting"
    with progress_bar(text, total_bytes, hidden=hidden) as advance:
        for answer in client.admin.DeleteTiles(request):
            advance(removed.add(answer.tiles))
            if answer.HasField("summary"):
                summary = answer.summary
    return summary


def _print_json_tile(tile: pb.EvictedTile) -> None:
    print_json_line({"tile": message_to_dict(tile)})


def _print(summary: pb.DeletionSummary, removed: RemovedTiles) -> None:
    deleted = format_tiles(summary.deleted_count, summary.freed_bytes)
    if summary.dry_run:
        click.echo(f"Would delete {deleted}. Nothing was changed.")
    else:
        click.echo(f"Deleted {deleted}.")
    removed.print()
    if summary.pending_upload_count:
        kept = "Would keep" if summary.dry_run else "Kept"
        click.echo(
            f"{kept} {format_count(summary.pending_upload_count, 'matching tile')} pending upload; "
            "--include-pending-uploads deletes them too."
        )
    if summary.pinned_count:
        kept = "Would keep" if summary.dry_run else "Kept"
        click.echo(
            f"{kept} {format_count(summary.pinned_count, 'matching tile')} pinned by "
            f"{', '.join(summary.pin_names)}; --include-pinned deletes them too."
        )
    for tile_uuid in summary.not_found_tile_uuids:
        click.echo(f"{tile_uuid}: not found", err=True)
