"""`tilecache usage`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from tilecache.identity import SOURCE_TEXTS
from tilecache.v1.tile_cache_admin_pb2 import (
    GetStorageUsageRequest,
    GetStorageUsageResponse,
    StorageUsage,
)
from tilecache_daemon.cli.output import (
    admin_socket_option,
    connect,
    json_option,
    message_to_dict,
    print_json,
)
from tilecache_daemon.cli.sizes import format_count, format_size, format_tiles
from tilecache_daemon.cli.tiles import LABEL_TEXTS

BAR_WIDTH = 24
NEARLY_FULL_SHARE = 0.9
FRESH = "fresh"


@click.command("usage")
@admin_socket_option
@json_option
def usage_command(socket_path: Path, as_json: bool) -> None:
    """Show disk usage, stale tiles, and pending uploads and removals.

    \b
    tilecache usage
    tilecache usage --json | jq .pending_upload

    Sizes are those of the image files. `tilecache coverage` shows which cells of a
    region are covered.
    """
    with connect(socket_path) as client:
        usage = client.admin.GetStorageUsage(GetStorageUsageRequest(), timeout=30)
    if as_json:
        print_json(message_to_dict(usage, zeros=True))
        return
    console = Console(highlight=False)
    console.print(_summary(usage))
    for table in _details(usage):
        console.print()
        console.print(table)


def _summary(usage: GetStorageUsageResponse) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("stored", _stored(usage)),
        ("used", _used(usage)),
        ("stale", _stale(usage)),
        ("pending upload", _pending(usage.pending_upload, "tilecache uploads list")),
        ("pinned", _pending(usage.pinned, "tilecache pins list")),
        ("pending removal", _pending(usage.pending_removal, "tilecache evictions remove")),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    for note in _notes(usage):
        table.add_row("", note)
    return table


def _notes(usage: GetStorageUsageResponse) -> Iterator[str]:
    if usage.max_used_bytes:
        action = "evicts the least recently used tiles" if usage.evict_on_insert else "is refused"
        yield f"An insert beyond the ceiling {action}."
    if usage.unknown_size_count:
        yield f"{format_count(usage.unknown_size_count, 'tile')} of unknown size, counted as 0."


def _stored(usage: GetStorageUsageResponse) -> str:
    if not usage.total.tile_count:
        return "no tiles; import some with `tilecache import`"
    first, last = usage.zooms[0].zoom, usage.zooms[-1].zoom
    zooms = f"zoom {first}" if first == last else f"{len(usage.zooms)} zooms, {first} to {last}"
    return f"{format_count(usage.total.tile_count, 'tile')} at {zooms}"


def _used(usage: GetStorageUsageResponse) -> str | Table:
    used, ceiling = usage.total.used_bytes, usage.max_used_bytes
    if not ceiling:
        return f"{format_size(used)}; no ceiling is set (max_used_bytes)"
    share = used / ceiling
    colour = "green" if share < NEARLY_FULL_SHARE else "yellow" if share < 1 else "red"
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(
            total=ceiling,
            completed=min(used, ceiling),
            width=BAR_WIDTH,
            complete_style=colour,
            finished_style=colour,
        ),
        f"{format_size(used)} of {format_size(ceiling)} ([{colour}]{share:.0%}[/{colour}])",
    )
    return line


def _stale(usage: GetStorageUsageResponse) -> str:
    stale = [
        f"{item.usage.tile_count:,} {LABEL_TEXTS[item.label]}"
        for item in usage.labels
        if LABEL_TEXTS[item.label] != FRESH
    ]
    return ", ".join(stale) or "none"


def _pending(usage: StorageUsage, command: str) -> str:
    if not usage.tile_count:
        return "none"
    return f"{format_tiles(usage.tile_count, usage.used_bytes)}; see `{command}`"


def _details(usage: GetStorageUsageResponse) -> Iterator[Table]:
    if not usage.total.tile_count:
        return
    yield _table("zoom", [(str(item.zoom), item.usage) for item in usage.zooms])
    yield _table("label", [(LABEL_TEXTS[item.label], item.usage) for item in usage.labels])
    yield _table(
        "source", [(SOURCE_TEXTS.get(item.source, "other"), item.usage) for item in usage.sources]
    )


def _table(kind: str, rows: Sequence[tuple[str, StorageUsage]]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(kind, min_width=14)
    table.add_column("tiles", justify="right", min_width=11)
    table.add_column("size", justify="right", min_width=9)
    table.add_column("share of tiles")
    total = sum(used.tile_count for _, used in rows)
    for name, used in rows:
        bar = ProgressBar(total=total, completed=used.tile_count, width=BAR_WIDTH)
        table.add_row(name, f"{used.tile_count:,}", format_size(used.used_bytes), bar)
    return table
