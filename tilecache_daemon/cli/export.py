"""`tilecache export`."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM
from tilecache.paths import ADMIN_SOCKET_NAME
from tilecache.v1.tile_metadata_store_pb2 import (
    ListTilesRequest,
    Region,
    TileMetadata,
)
from tilecache_daemon.cli.flights import read_flights
from tilecache_daemon.cli.import_run import RateColumn
from tilecache_daemon.cli.interruptions import INTERRUPTED, stop_on_interrupt
from tilecache_daemon.cli.list_tiles import read_tiles
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    fail,
    json_option,
    print_json_line,
    second_socket_option,
    socket_option,
)
from tilecache_daemon.cli.policy_copy import PolicyItem, read_policy
from tilecache_daemon.cli.regions import optional_region_options
from tilecache_daemon.cli.roots import choose_root, describe_server, root_option
from tilecache_daemon.cli.sizes import format_count, format_tiles
from tilecache_daemon.cli.tile_filters import tile_filter_options
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.export.bundle_writers import (
    BundleWriter,
    DirectoryWriter,
    TargetError,
    TarWriter,
)
from tilecache_daemon.export.exporter import ExportCounts, TileExporter, TileWriter
from tilecache_daemon.export.mbtiles_writer import MBTilesWriter
from tilecache_daemon.ingest.bundle_format import pack_flight, pack_policy
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import Refusal
from tilecache_daemon.ingest.unpacking import UnpackingError
from tilecache_daemon.rpc.regions import cell_filter

CALL_TIMEOUT_S: Final = 60
_MAX_EXAMPLES: Final = 3


@click.command("export")
@click.argument("target", type=click.Path(path_type=Path))
@optional_region_options
@tile_filter_options
@click.option("--policy", "with_policy", is_flag=True, help="Also sectors, rules and pins.")
@click.option(
    "--mbtiles",
    "as_mbtiles",
    is_flag=True,
    help="Write an .mbtiles file for map programs: the best image of each cell, no metadata.",
)
@root_option
@click.option("--dry-run", is_flag=True, help="Only show how many tiles would be exported.")
@socket_option
@second_socket_option
@json_option
def export_command(
    target: Path,
    region: Region | None,
    request: ListTilesRequest,
    with_policy: bool,
    as_mbtiles: bool,
    root: Path | None,
    dry_run: bool,
    socket_path: Path,
    admin_socket_path: Path | None,
    as_json: bool,
) -> None:
    """Export tiles with their images and metadata, for `tilecache import` elsewhere.

    TARGET becomes a bundle: a directory, or a .tar if its name ends so. A tile must match
    every given filter; without one, all are exported. The image of each tile is compared
    with its hash. Times of creation and use and labels are not exported.

    An interrupted export into a directory continues if it is run again; one into a .tar
    begins anew. An incomplete bundle is not imported.

    \b
    tilecache export /media/card/bundle
    tilecache export made.tar --flight 3f2504e0-4f89-41d3-9a0c-0305e82c3301 --pending-uploads
    tilecache export base --zoom 12-16 --area mission.plan --policy
    tilecache export map.mbtiles --mbtiles --circle 50.45,30.52,5000

    With --json: JSON Lines, one tile that could not be exported a line, then the summary.

    Exit codes: 0 success; 1 some images are missing or damaged, or there is no room; 2 wrong
    usage; 3 the daemon does not answer; 4 refused by the daemon.
    """
    if target.suffix.lower() == ".mbtiles" and not as_mbtiles:
        raise click.UsageError(f"{target}: give --mbtiles, or another name for a bundle.")
    if as_mbtiles and with_policy:
        raise click.UsageError("--policy: an .mbtiles file has no place for it.")
    everything = region is None and not request.ByteSize()
    wanted = _region_filter(region, request.zooms)
    with connect(socket_path) as client:
        tiles = filter(wanted, read_tiles(client, request))
        if dry_run:
            _print_dry_run(tiles, as_json)
            return
        root = choose_root(root, describe_server(client).tiles_directory)
        policy = []
        if with_policy:
            policy = read_policy(admin_socket_path or socket_path.with_name(ADMIN_SOCKET_NAME))
        report = _Report(target, as_json)
        writer: MBTilesWriter | BundleWriter = _open_writer(target, as_mbtiles)
        with closing(writer), _exporter(root, writer, report) as exporter:
            _run(exporter, tiles, report)
            _finish(client, writer, exporter.counts, policy, report, everything=everything)
    report.print(exporter.counts)
    sys.exit(ExitCode.IN_PART if exporter.counts.refused else ExitCode.DONE)


def _region_filter(
    region: Region | None, zooms: Sequence[int]
) -> Callable[[TileMetadata], bool] | None:
    if region is None:
        return None
    try:
        contains = cell_filter(zooms or range(MAX_ZOOM + 1), region)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from error
    return lambda tile: contains(tile.key.zoom, tile.key.x, tile.key.y)


def _print_dry_run(tiles: Iterable[TileMetadata], as_json: bool) -> None:
    count = used_bytes = 0
    for tile in tiles:
        count, used_bytes = count + 1, used_bytes + tile.disk_bytes
    if as_json:
        print_json_line(
            {"kind": "summary", "tile_count": count, "used_bytes": used_bytes, "dry_run": True}
        )
    else:
        click.echo(f"Would export {format_tiles(count, used_bytes)}. Nothing was written.")


def _open_writer(target: Path, as_mbtiles: bool) -> MBTilesWriter | BundleWriter:
    try:
        if as_mbtiles:
            return MBTilesWriter(target)
        return TarWriter(target) if target.suffix.lower() == ".tar" else DirectoryWriter(target)
    except (TargetError, UnpackingError) as error:
        fail(ExitCode.USAGE, str(error))


@contextmanager
def _exporter(root: Path, writer: TileWriter, report: "_Report") -> Iterator[TileExporter]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=report.as_json or not console.is_terminal,
    ) as progress:
        task = progress.add_task("Exporting", total=None)
        try:
            exporter = TileExporter(
                root, writer, report.add, lambda count: progress.advance(task, count)
            )
        except SourceError as error:
            fail(ExitCode.USAGE, str(error))
        with closing(exporter):
            yield exporter


def _run(exporter: TileExporter, tiles: Iterable[TileMetadata], report: "_Report") -> None:
    with stop_on_interrupt(exporter.stopping), _failing(report, exporter.counts):
        exporter.run(tiles)
    if exporter.stopping.is_set():
        report.print(exporter.counts, "interrupted")
        sys.exit(INTERRUPTED)


def _finish(
    client: TileCacheClient,
    writer: MBTilesWriter | BundleWriter,
    counts: ExportCounts,
    policy: list[PolicyItem],
    report: "_Report",
    *,
    everything: bool,
) -> None:
    if isinstance(writer, MBTilesWriter):
        with _failing(report, counts):
            writer.finish()
        return
    flights = [
        pack_flight(flight)
        for flight in read_flights(client)
        if flight.recorded and (everything or flight.flight_id in counts.flights)
    ]
    lines = list(map(pack_policy, policy))
    header = counts.header()._replace(flight_count=len(flights), policy_count=len(lines))
    with _failing(report, counts):
        writer.finish(header, flights, lines)


@contextmanager
def _failing(report: "_Report", counts: ExportCounts) -> Iterator[None]:
    """Ends the command if the target cannot be written."""
    try:
        yield
    except UnpackingError as error:
        report.print(counts, str(error))
        fail(ExitCode.IN_PART, str(error))
    except OSError as error:
        why = f"{report.target}: {error.strerror or error}"
        report.print(counts, why)
        fail(ExitCode.IN_PART, why)


class _Report:
    """Names the tiles that could not be exported: all of them in JSON, else a few of each
    reason."""

    def __init__(self, target: Path, as_json: bool) -> None:
        self.target = target
        self.as_json = as_json
        self._reasons: Counter[str] = Counter()

    def add(self, refusal: Refusal) -> None:
        self._reasons[refusal.reason] += 1
        if self.as_json:
            print_json_line({"kind": "refused", **refusal._asdict()})
        elif self._reasons[refusal.reason] <= _MAX_EXAMPLES:
            click.echo(f"{refusal.file}: {refusal.message}", err=True)

    def print(self, counts: ExportCounts, failure: str = "") -> None:
        """Prints the summary; `failure` says why the bundle is incomplete."""
        if self.as_json:
            print_json_line(
                {
                    "kind": "summary",
                    "target": str(self.target),
                    "tile_count": counts.tiles,
                    "used_bytes": counts.used_bytes,
                    "refused_count": counts.refused,
                    "failure": failure or None,
                    "dry_run": False,
                }
            )
            return
        click.echo(f"Exported {format_tiles(counts.tiles, counts.used_bytes)} to {self.target}.")
        for reason, count in sorted(self._reasons.items()):
            click.echo(f"Not exported: {format_count(count, 'tile')} ({reason})")
        if failure:
            click.echo("The export is incomplete; run it again to continue.")
