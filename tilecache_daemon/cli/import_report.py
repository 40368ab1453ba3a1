"""The report of `tilecache import`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from tilecache_daemon.cli.output import print_json, print_table
from tilecache_daemon.cli.sizes import format_count
from tilecache_daemon.ingest.found import IgnoredFile, Refusal, printable
from tilecache_daemon.ingest.importer import ImportCounts
from tilecache_daemon.ingest.schemes import Scheme

_MAX_EXAMPLES: Final = 3


@dataclass
class _Group:
    count: int = 0
    examples: list[Refusal] = field(default_factory=list)


class ImportReport:
    """Collects the refused tiles: all of them for JSON, else a few examples of each reason."""

    def __init__(self, source: Path, scheme: Scheme, total: int, as_json: bool) -> None:
        self.source = source
        self.scheme = scheme
        self.total = total
        self.as_json = as_json
        self._refused: list[Refusal] = []
        self._groups: defaultdict[str, _Group] = defaultdict(_Group)
        self._ignored: list[str] = []
        self.notes: list[str] = []
        """What was done beside the tiles."""
        self.problems: list[str] = []
        """What was not; they make the exit code 1."""

    def add_refused(self, refusal: Refusal) -> None:
        if self.as_json:
            self._refused.append(refusal)
            return
        group = self._groups[refusal.reason]
        group.count += 1
        if len(group.examples) < _MAX_EXAMPLES:
            group.examples.append(refusal)

    def add_ignored(self, ignored: IgnoredFile) -> None:
        if self.as_json or len(self._ignored) < _MAX_EXAMPLES:
            self._ignored.append(ignored.file)

    def print(
        self, counts: ImportCounts, interrupted: bool, failure: str, warnings: Sequence[str]
    ) -> None:
        """Prints to stdout, and warnings to stderr unless it prints JSON; `failure` is empty if
        the import did not fail."""
        if self.as_json:
            self._print_json(counts, interrupted, failure, warnings)
            return
        self._print_text(counts, interrupted, failure)
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)

    def _print_json(
        self, counts: ImportCounts, interrupted: bool, failure: str, warnings: Sequence[str]
    ) -> None:
        print_json(
            {
                "source": printable(self.source),
                "scheme": self.scheme.value,
                "total_count": self.total,
                "inserted_count": counts.inserted,
                "downgraded_count": counts.downgraded,
                "already_present_count": counts.already_present,
                "updated_count": counts.updated,
                "kept_existing_count": counts.kept_existing,
                "replaced_count": counts.replaced,
                "refused_count": counts.refused,
                "ignored_count": counts.ignored,
                "interrupted": interrupted,
                "failure": failure,
                "warnings": list(warnings),
                "refused": [refusal._asdict() for refusal in self._refused],
                "ignored": self._ignored,
                "notes": self.notes,
                "problems": self.problems,
            }
        )

    def _print_text(self, counts: ImportCounts, interrupted: bool, failure: str) -> None:
        outcomes = {
            "inserted": counts.inserted,
            "inserted as downgraded": counts.downgraded,
            "already stored": counts.already_present,
            "corrected": counts.updated,
            "existing kept": counts.kept_existing,
            "replaced": counts.replaced,
            "refused": counts.refused,
        }
        remaining = self.total - sum(outcomes.values())
        rows = [(name, f"{count:,}") for name, count in outcomes.items() if count]
        if remaining > 0:
            rows.append(("not yet imported", f"{remaining:,}"))
        order = ", rows counted from the south (tms)" if self.scheme is Scheme.TMS else ""
        click.echo(f"{printable(self.source)}{order}:")
        print_table(["outcome", "tiles"], rows)
        self._print_refused()
        if counts.ignored:
            names = ", ".join(self._ignored) + (", ..." if counts.ignored > _MAX_EXAMPLES else "")
            click.echo(f"Ignored {format_count(counts.ignored, 'other file')}: {names}")
        for line in (*self.notes, *self.problems):
            click.echo(line)
        if interrupted or failure:
            click.echo("The import is incomplete; run it again to continue.")

    def _print_refused(self) -> None:
        for reason, group in sorted(self._groups.items()):
            click.echo(f"Refused {format_count(group.count, 'tile')} ({reason}):")
            for refusal in group.examples:
                field = f" ({refusal.field})" if refusal.field else ""
                click.echo(f"  {refusal.file}{field}: {refusal.message}")
            if group.count > len(group.examples):
                click.echo(f"  ... and {group.count - len(group.examples):,} more")
