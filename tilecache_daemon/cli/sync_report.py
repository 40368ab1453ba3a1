"""The report of `tilecache sync`."""

from collections.abc import Iterator
from typing import Any

import click

from tilecache.identity import SOURCE_TEXTS
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.cli.output import print_json_line
from tilecache_daemon.cli.sizes import format_count, format_size, format_tiles
from tilecache_daemon.ingest.found import Refusal
from tilecache_daemon.sync.fetching import Fetch
from tilecache_daemon.sync.peer import Peer
from tilecache_daemon.sync.pushing import Push


class SyncReport:
    """Prints files and refusals as they come, and the summary."""

    def __init__(self, as_json: bool) -> None:
        self.refused_count = 0
        self._as_json = as_json

    def add_file(self, tile: TileMetadata) -> None:
        if not self._as_json:
            click.echo(tile.file_path)
            return
        key = tile.key
        print_json_line(
            {
                "kind": "file",
                "file_path": tile.file_path,
                "disk_bytes": tile.disk_bytes,
                "content_sha256": tile.content_sha256,
                "tile_uuid": tile.tile_uuid,
                "zoom": key.zoom,
                "x": key.x,
                "y": key.y,
                "source": SOURCE_TEXTS.get(key.source, "other"),
                "flight_id": key.flight_id if key.HasField("flight_id") else None,
            }
        )

    def add_refused(self, refusal: Refusal) -> None:
        self.refused_count += 1
        if not self._as_json:
            click.echo(f"refused {refusal.file}: {refusal.message} ({refusal.reason})", err=True)
            return
        print_json_line(
            {
                "kind": "refused",
                "file_path": refusal.file,
                "reason": refusal.reason,
                "message": refusal.message,
            }
        )

    def print_summary(
        self,
        fetch: Fetch,
        push: Push | None,
        there: Peer,
        dry_run: bool,
        failure: BaseException | None,
    ) -> None:
        if self._as_json:
            print_json_line(_summary(fetch, push, there, dry_run, failure))
            return
        for line in _sentences(fetch, push, there, dry_run):
            click.echo(line, err=True)
        if failure:
            click.echo("The run is incomplete; run it again to continue.", err=True)


def _summary(
    fetch: Fetch, push: Push | None, there: Peer, dry_run: bool, failure: BaseException | None
) -> dict[str, Any]:
    counts, compared = fetch.counts, fetch.comparison
    return {
        "kind": "summary",
        "dry_run": dry_run,
        "block_count": compared.blocks,
        "differing_block_count": compared.differing_blocks,
        "differing_tile_count": compared.differing_tiles,
        "kept_tile_count": compared.kept_tiles,
        "inserted_count": counts.inserted,
        "downgraded_count": counts.downgraded,
        "replaced_count": counts.replaced,
        "already_present_count": counts.already_present,
        "kept_existing_count": counts.kept_existing,
        "refused_count": counts.refused,
        "copied_file_count": counts.copied_files,
        "copied_bytes": counts.copied_bytes,
        "file_count": counts.files,
        "file_bytes": counts.file_bytes,
        "pending_upload_count": push and push.counts.pending,
        "marked_count": push and push.counts.marked,
        "not_taken_count": push and push.counts.kept_existing,
        "push_refused_count": push and push.counts.refused,
        "transferred_bytes": there.transferred_bytes,
        "failure": (str(failure) or "interrupted") if failure else None,
    }


def _sentences(fetch: Fetch, push: Push | None, there: Peer, dry_run: bool) -> Iterator[str]:
    counts, compared = fetch.counts, fetch.comparison
    if push:
        pushed = push.counts
        yield f"{format_count(pushed.pending, 'tile')} waited for upload."
        if not dry_run:
            yield f"Marked {format_count(pushed.marked, 'tile')} that the other daemon has."
        if pushed.kept_existing:
            not_taken = format_count(pushed.kept_existing, "tile")
            yield f"The other daemon has later ones of {not_taken}."
    yield (
        f"{compared.differing_blocks:,} of {format_count(compared.blocks, 'block')} differ, with "
        f"{format_count(compared.differing_tiles, 'tile')} that are not the same here."
    )
    insert, replace = ("Would insert", "replace") if dry_run else ("Inserted", "replaced")
    yield f"{insert} {counts.inserted + counts.downgraded:,}, {replace} {counts.replaced:,}."
    if compared.kept_tiles:
        yield f"Kept {compared.kept_tiles:,} that are later here."
    if refused := counts.refused + (push.counts.refused if push else 0):
        yield f"Refused {refused:,}."
    if counts.copied_files:
        copied = format_count(counts.copied_files, "file")
        yield f"Copied {copied} ({format_size(counts.copied_bytes)})."
    if counts.files:
        yield f"Listed the files of {format_tiles(counts.files, counts.file_bytes)}."
    yield f"Exchanged {format_size(there.transferred_bytes)} of metadata."
