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
from tilecache_daemon.cli.sizes import format_size, format_tiles
from tilecache_daemon.cli.tiles import LABEL_TEXTS

BAR_WIDTH = 24
NEARLY_FULL = 0.9
FRESH = "fresh"


@click.command("usage")
@admin_socket_option
@json_option
def usage_command(socket_path: Path, as_json: bool) -> None:
    """Show what is stored, what is stale, what is full and what waits, at a glance.

    \b
    tilecache usage
    tilecache usage --json | jq .pending_upload

    Sizes are those of the pictures. Which cells of a region are covered is told by
    `tilecache coverage`.
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
        ("covered", _covered(usage)),
        ("full", _full(usage)),
        ("stale", _stale(usage)),
        ("to upload", _waiting(usage.pending_upload, "waits", "wait", "tilecache uploads list")),
        (
            "to remove",
            _waiting(
                usage.pending_removal,
                "has gone, but not its file",
                "have gone, but not their files",
                "tilecache evictions remove",
            ),
        ),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    for note in _notes(usage):
        table.add_row("", note)
    return table


def _notes(usage: GetStorageUsageResponse) -> Iterator[str]:
    if usage.max_used_bytes:
        then = "evicts the least recently used" if usage.evict_on_insert else "is refused"
        yield f"An insert that would pass the ceiling {then}."
    if usage.unknown_size_count:
        yield f"{usage.unknown_size_count:,} tiles count as 0 bytes: their size is not known."


def _covered(usage: GetStorageUsageResponse) -> str:
    if not usage.total.tile_count:
        return "nothing is stored; fill the cache with `tilecache import`"
    first, last = usage.zooms[0].zoom, usage.zooms[-1].zoom
    span = f"zoom {first}" if first == last else f"{len(usage.zooms)} zooms, {first} to {last}"
    return f"{usage.total.tile_count:,} tiles in {span}"


def _full(usage: GetStorageUsageResponse) -> str | Table:
    used, ceiling = usage.total.used_bytes, usage.max_used_bytes
    if not ceiling:
        return f"{format_size(used)} used; there is no ceiling (max_used_bytes)"
    share = used / ceiling
    colour = "green" if share < NEARLY_FULL else "yellow" if share < 1 else "red"
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(
            total=ceiling,
            completed=min(used, ceiling),
            width=BAR_WIDTH,
            complete_style=colour,
            finished_style=colour,
        ),
        f"[{colour}]{share:.0%}[/{colour}] of the ceiling: "
        f"{format_size(used)} of {format_size(ceiling)}",
    )
    return line


def _stale(usage: GetStorageUsageResponse) -> str:
    stale = [
        f"{item.usage.tile_count:,} {LABEL_TEXTS[item.label]}"
        for item in usage.labels
        if LABEL_TEXTS[item.label] != FRESH
    ]
    return ", ".join(stale) if stale else "nothing"


def _waiting(usage: StorageUsage, one: str, many: str, command: str) -> str:
    if not usage.tile_count:
        return "nothing"
    verb = one if usage.tile_count == 1 else many
    return f"{format_tiles(usage.tile_count, usage.used_bytes)} {verb}: see `{command}`"


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
    table.add_column("share of the tiles")
    most = sum(used.tile_count for _, used in rows)
    for name, used in rows:
        bar = ProgressBar(total=most, completed=used.tile_count, width=BAR_WIDTH)
        table.add_row(name, f"{used.tile_count:,}", format_size(used.used_bytes), bar)
    return table
