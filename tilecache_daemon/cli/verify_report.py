"""The output of `tilecache verify`: a line for each finding, then a summary."""

import sys
from collections import Counter
from typing import Any

import click

from tilecache.identity import SOURCE_TEXTS
from tilecache_daemon.cli.output import print_json_line
from tilecache_daemon.cli.sizes import format_count
from tilecache_daemon.cli.verify_actions import Actions, Intent, is_pending_upload
from tilecache_daemon.ingest.found import printable
from tilecache_daemon.verification.checks import Finding, Problem
from tilecache_daemon.verification.progress_log import Position


class Report:
    """Prints findings to stdout as they come, and counts them."""

    def __init__(self, intent: Intent, *, as_json: bool) -> None:
        self.as_json = as_json
        self.counts: Counter[Problem] = Counter()
        self.recent_orphan_count = 0
        self.kept_pending_count = 0
        """Rows that are not deleted because they wait for upload."""
        self.to_delete = 0
        """Rows that are to be deleted."""
        self.to_remove = 0
        """Orphans that are to be removed."""
        self.intent = intent

    def add(self, finding: Finding) -> None:
        """Prints a finding."""
        is_recent = finding.problem is Problem.ORPHAN and not self.intent.is_old(finding)
        self.counts[finding.problem] += 1
        self.recent_orphan_count += is_recent
        self.kept_pending_count += self.intent.keeps_pending(finding)
        self.to_delete += self.intent.deletes_row(finding)
        self.to_remove += self.intent.removes_file(finding)
        if self.as_json:
            print_json_line(_to_dict(finding, is_recent=is_recent))
        else:
            # Rich moves what is written to sys.stdout above its progress bar.
            sys.stdout.write(f"{_describe(finding, is_recent=is_recent)}\n")

    def print_summary(
        self, root: str, position: Position, actions: Actions, *, dry_run: bool
    ) -> None:
        """Prints the summary, in JSON to stdout, else to stderr."""
        if self.as_json:
            print_json_line(
                {
                    "kind": "summary",
                    "root": printable(root),
                    "tile_count": position.row_count,
                    "file_count": position.file_count,
                    **{f"{problem.value}_count": self.counts[problem] for problem in Problem},
                    "recent_orphan_count": self.recent_orphan_count,
                    "kept_pending_upload_count": self.kept_pending_count,
                    "dry_run": dry_run,
                    "deleted_count": self.to_delete if dry_run else actions.deleted_count,
                    "removed_count": self.to_remove if dry_run else actions.removed_count,
                    "left_count": actions.left_count,
                }
            )
            return
        compared = f"{position.row_count:,} tiles and {position.file_count:,} files below {root}"
        found = [
            format_count(count, "orphan") if each is Problem.ORPHAN else f"{count:,} {_name(each)}"
            for each in Problem
            if (count := self.counts[each])
        ]
        click.echo(f"Compared {compared}: {', '.join(found) or 'nothing is wrong'}.", err=True)
        if dry_run:
            click.echo(f"Would {self.describe_plan()}. Nothing was changed.", err=True)
        elif actions.deleted_count or actions.removed_count:
            rows = format_count(actions.deleted_count, "row")
            orphans = format_count(actions.removed_count, "orphan")
            click.echo(f"Deleted {rows} and removed {orphans}.", err=True)
        if actions.listed_count:
            files = format_count(actions.listed_count, "damaged file")
            click.echo(f"{files} on the removal list: see `tilecache evictions remove`.", err=True)
        if self.intent.repair and self.kept_pending_count:
            rows = format_count(self.kept_pending_count, "row")
            click.echo(
                f"Kept {rows} pending upload; --include-pending-uploads deletes them too.", err=True
            )

    def describe_plan(self) -> str:
        """What is to be done, after `would` or `to`."""
        rows, orphans = format_count(self.to_delete, "row"), format_count(self.to_remove, "orphan")
        return f"delete {rows} and remove {orphans}"


def _to_dict(finding: Finding, *, is_recent: bool) -> dict[str, Any]:
    """A finding as a flat object with all fields; None where there is nothing."""
    tile = finding.tile
    key = tile.key if tile else None
    return {
        "kind": "file",
        "problem": finding.problem.value,
        "file_path": printable(finding.file_path),
        "reason": finding.reason,
        "tile_uuid": tile.tile_uuid if tile else None,
        "zoom": key.zoom if key else None,
        "x": key.x if key else None,
        "y": key.y if key else None,
        "source": SOURCE_TEXTS.get(key.source, "other") if key else None,
        "flight_id": key.flight_id if key and key.HasField("flight_id") else None,
        "disk_bytes": tile.disk_bytes if tile and tile.HasField("disk_bytes") else None,
        "content_sha256": (tile.content_sha256 or None) if tile else None,
        "pending_upload": is_pending_upload(tile) if tile else None,
        "found_bytes": finding.found_bytes,
        "found_sha256": finding.found_sha256,
        "age_s": finding.age_s,
        "recent": is_recent if finding.problem is Problem.ORPHAN else None,
    }


def _name(problem: Problem) -> str:
    return problem.value.replace("_", " ")


def _describe(finding: Finding, *, is_recent: bool) -> str:
    """A finding on one line."""
    tile = finding.tile
    parts = []
    if tile:
        key = tile.key
        parts.append(f"{key.zoom}/{key.x}/{key.y} {SOURCE_TEXTS.get(key.source, 'other')}")
    match finding.problem:
        case Problem.WRONG_SIZE if tile:
            parts.append(f"has {finding.found_bytes:,} bytes, not {tile.disk_bytes:,}")
        case Problem.WRONG_CONTENT if tile:
            parts.append(f"has SHA-256 {finding.found_sha256}, not {tile.content_sha256}")
    if tile and is_pending_upload(tile):
        parts.append("waits for upload")
    if is_recent and finding.age_s is not None:
        parts.append(f"recent: {max(finding.age_s, 0) / 60:.0f} min")
    if finding.reason:
        parts.append(finding.reason)
    return (
        f"{_name(finding.problem):<14} {printable(finding.file_path)}  {'; '.join(parts)}".rstrip()
    )
