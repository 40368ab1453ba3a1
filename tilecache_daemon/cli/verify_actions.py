"""What `tilecache verify` does about its findings: rows are deleted, orphans are removed."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import click

from tilecache.client import TileCacheClient
from tilecache.identity import ONBOARD_INGEST, SOURCE_TEXTS
from tilecache.v1.tile_cache_admin_pb2 import (
    ConfirmEvictionsRequest,
    DeleteTilesRequest,
    EvictedTile,
    ExpectedFile,
)
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.cli.tile_files import TileFiles
from tilecache_daemon.ingest.found import printable
from tilecache_daemon.verification.checks import CALL_TIMEOUT_S, FileChecker, Finding, Problem
from tilecache_daemon.verification.verifier import chunked

_BATCH_FILES: Final = 100
"""Files that are checked once more together before something is done about them."""


class Intent(NamedTuple):
    """What is to be done about findings."""

    repair: bool
    remove_orphans: bool
    include_pending_uploads: bool
    orphan_age_s: float
    """Younger orphans are left."""

    def deletes_row(self, finding: Finding) -> bool:
        """Whether the row of a finding is to be deleted."""
        return self.repair and _is_lost(finding) and not self.keeps_pending(finding)

    def keeps_pending(self, finding: Finding) -> bool:
        """Whether the row of a finding is not to be deleted because it waits for upload."""
        if self.include_pending_uploads or finding.tile is None or not _is_lost(finding):
            return False
        return is_pending_upload(finding.tile)

    def removes_file(self, finding: Finding) -> bool:
        """Whether the file of a finding is to be removed."""
        return self.remove_orphans and finding.identity is not None and self.is_old(finding)

    def is_old(self, finding: Finding) -> bool:
        """Whether an orphan has been there for so long that no row will come for it."""
        return finding.age_s is not None and finding.age_s >= self.orphan_age_s


def _is_lost(finding: Finding) -> bool:
    """Whether the file of a tile is gone or damaged."""
    return finding.tile is not None and finding.problem is not Problem.UNREADABLE


def is_pending_upload(tile: TileMetadata) -> bool:
    """Whether the tile was made onboard and is not uploaded yet, so that no copy exists."""
    source = SOURCE_TEXTS.get(tile.key.source)
    return source == ONBOARD_INGEST and not tile.HasField("uploaded_at")


@dataclass
class Actions:
    """Counts what was done."""

    deleted_count: int = 0
    listed_count: int = 0
    """Files of deleted rows that are on the removal list."""
    removed_count: int = 0
    left_count: int = 0
    """Findings about which nothing was done, and which still hold."""


def act(
    client: TileCacheClient,
    checker: FileChecker,
    files: TileFiles,
    paths: Iterable[str],
    intent: Intent,
    on_progress: Callable[[int], None],
) -> Actions:
    """Deletes rows and removes orphans. Each of the files is checked again right before. Raises
    CallError."""
    actions = Actions()
    for batch in chunked(paths, _BATCH_FILES):
        findings = checker.find(batch)
        rows = [finding for finding in findings if intent.deletes_row(finding)]
        deleted = _delete_rows(client, rows, intent)
        listed = _confirm_gone(client, files, deleted)
        removed = sum(
            _remove(files, finding) for finding in findings if intent.removes_file(finding)
        )
        actions.deleted_count += len(deleted)
        actions.listed_count += listed
        actions.removed_count += removed
        actions.left_count += len(findings) - len(deleted) - removed
        on_progress(len(batch))
    return actions


def _delete_rows(
    client: TileCacheClient, findings: Sequence[Finding], intent: Intent
) -> list[EvictedTile]:
    """Deletes rows that still name the same file and content; returns those that were deleted.
    Pins do not hold them: what a pin is to keep is lost already."""
    tiles = {finding.tile.tile_uuid: finding.tile for finding in findings if finding.tile}
    if not tiles:
        return []
    request = DeleteTilesRequest(
        tile_uuids=tiles,
        expected_files=[
            ExpectedFile(file_path=tile.file_path, content_sha256=tile.content_sha256)
            for tile in tiles.values()
        ],
        include_pending_uploads=intent.include_pending_uploads,
        include_pinned=True,
    )
    answers = client.admin.DeleteTiles(request, timeout=CALL_TIMEOUT_S)
    return [tile for answer in answers for tile in answer.tiles]


def _confirm_gone(client: TileCacheClient, files: TileFiles, deleted: Iterable[EvictedTile]) -> int:
    """Takes files that are gone off the removal list; returns how many remain on it."""
    listed = [tile for tile in deleted if tile.eviction_id]
    gone = [tile.eviction_id for tile in listed if not os.path.lexists(files.root / tile.file_path)]
    if gone:
        request = ConfirmEvictionsRequest(eviction_ids=gone)
        client.admin.ConfirmEvictions(request, timeout=CALL_TIMEOUT_S)
    return len(listed) - len(gone)


def _remove(files: TileFiles, finding: Finding) -> bool:
    assert finding.identity is not None
    try:
        return files.remove_unchanged(finding.file_path, finding.identity)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        click.echo(f"{printable(finding.file_path)}: {reason}", err=True)
        return False
