"""`tilecache import`."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import click
import grpc
from click.core import ParameterSource

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.identity import (
    GOOGLEMAPS,
    MAX_ZOOM,
    ONBOARD_INGEST,
    SOURCE_TEXTS,
    flight_text,
)
from tilecache.paths import ADMIN_SOCKET_NAME
from tilecache.v1.tile_cache_admin_pb2 import UpdateTilesRequest
from tilecache.v1.tile_identity_pb2 import TileSource
from tilecache.v1.tile_metadata_store_pb2 import OnConflict
from tilecache_daemon.cli.bundle_import import import_bundle
from tilecache_daemon.cli.capture_times import CapturedFromParam
from tilecache_daemon.cli.import_report import ImportReport
from tilecache_daemon.cli.import_run import run_import
from tilecache_daemon.cli.interruptions import INTERRUPTED
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    default_admin_socket_path,
    fail,
    json_option,
    second_socket_option,
    socket_option,
)
from tilecache_daemon.cli.roots import describe_server
from tilecache_daemon.cli.times import Moment
from tilecache_daemon.ingest.bundle import is_bundle
from tilecache_daemon.ingest.capture_times import CapturedFrom
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import Source, printable
from tilecache_daemon.ingest.importer import ImportOptions
from tilecache_daemon.ingest.schemes import Scheme
from tilecache_daemon.ingest.sources import open_source
from tilecache_daemon.ingest.unpacking import NoRoomError, UnpackDirectory, UnpackingError

_ON_CONFLICT: Final = {
    "fail": OnConflict.ON_CONFLICT_FAIL,
    "keep-existing": OnConflict.ON_CONFLICT_KEEP_EXISTING,
    "replace-if-newer": OnConflict.ON_CONFLICT_REPLACE_IF_NEWER,
}
_SOURCES: Final = {text: TileSource.ValueType(number) for number, text in SOURCE_TEXTS.items()}
_ANSWER_TIMEOUT_S: Final = 10.0
_NOT_FOR_BUNDLES: Final = (
    *("source", "flight", "captured_at", "captured_from", "update_metadata", "into", "scheme"),
)


def _parse_flight(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        return flight_text(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("import")
@click.argument("source_path", metavar="SOURCE", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--source",
    type=click.Choice(list(_SOURCES)),
    default=GOOGLEMAPS,
    show_default=True,
    help="The source of the tiles.",
)
@click.option(
    "--flight", callback=_parse_flight, metavar="UUID", help="The flight that produced the tiles."
)
@click.option(
    "--captured-at",
    type=Moment(),
    metavar="TIME",
    help="When the images were taken, in ISO 8601. UTC if it has no offset.  "
    "[default: what --captured-from says]",
)
@click.option(
    "--captured-from",
    type=CapturedFromParam(),
    metavar="[modified|exif|sidecar|PICTURE]",
    default=CapturedFrom.MODIFIED.value,
    help="What says when the images were taken: when each file or the archive was last modified, "
    "the EXIF of each image, a file {image}.json beside each, or the EXIF of one picture (TIFF, "
    "JPEG, ...) from which they were made.  [default: modified]",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The tile directory that stored paths are relative to.  [default: the daemon's tiles "
    "directory; if it has none, where the image files are stored: SOURCE or --into]",
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the images of an archive are unpacked.  "
    "[default: the archive's path without its suffix]",
)
@click.option(
    "--on-conflict",
    type=click.Choice(list(_ON_CONFLICT)),
    default="fail",
    show_default=True,
    help="What to do if a different image of the same tile is stored.",
)
@click.option(
    "--update-metadata",
    is_flag=True,
    help="Give tiles that are stored with the same image the path, the quality metadata and, with "
    "--captured-at or --captured-from, the capture time of this import. Those that are uploaded "
    "stay so. --socket is then the admin socket.",
)
@click.option(
    "--scheme",
    type=click.Choice([scheme.value for scheme in Scheme]),
    help="Rows are counted from the north (xyz) or from the south (tms).  "
    "[default: what SOURCE says and its bounds agree with]",
)
@click.option("--min-zoom", type=click.IntRange(0, MAX_ZOOM), help="Skip lower zoom levels.")
@click.option("--max-zoom", type=click.IntRange(0, MAX_ZOOM), help="Skip higher zoom levels.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    help="Number of tiles sent and committed together.",
)
@click.option(
    "--policy",
    "with_policy",
    is_flag=True,
    help="Also set the sectors, rules and pins of a bundle, before its tiles are stored.",
)
@json_option
@socket_option
@second_socket_option
@click.pass_context
def import_command(
    context: click.Context,
    source_path: Path,
    source: str,
    flight: str | None,
    captured_at: datetime | None,
    captured_from: CapturedFrom | datetime,
    root: Path | None,
    into: Path | None,
    on_conflict: str,
    update_metadata: bool,
    scheme: str | None,
    min_zoom: int | None,
    max_zoom: int | None,
    batch_size: int,
    with_policy: bool,
    as_json: bool,
    socket_path: Path,
    admin_socket_path: Path | None,
) -> None:
    """Import tiles from a directory, an archive or a bundle.

    SOURCE is a directory of {zoom}/{x}/{y}.{png,jpg,jpeg,webp} files, an .mbtiles
    file or a .pmtiles archive. The daemon stores metadata only. The images of a
    directory stay where they are; those of an archive are unpacked.

    A directory's rows are counted from the north (xyz), unless a tilemapresource.xml, a
    metadata.json or its bounds in there say otherwise; those of .mbtiles from the south
    (tms). If what SOURCE says is contradictory, nothing is imported without --scheme.

    A bundle, which `tilecache export` has written, says itself what its tiles are. Its
    images are written below --root, under the paths that they had; nothing is overwritten.

    An import can be interrupted with Ctrl-C and run again: tiles that are already
    stored are not stored twice. If a tile is refused, or a file is not an image, the
    others are imported and the exit code is 1.

    A tile that is stored with the same image stays as it is, with its capture time. To correct
    it, add --update-metadata.

    \b
    tilecache import tiles/
    tilecache import world.mbtiles --into /srv/tiles/world --root /srv/tiles
    tilecache import tiles/ --source onboard_ingest --flight 3f2504e0-4f89-41d3-9a0c-0305e82c3301
    tilecache import tiles/ --captured-at 2026-06-21 --update-metadata
    tilecache import /media/card/bundle --policy
    """
    if is_bundle(source_path):
        _check_bundle_options(context)
        import_bundle(
            source_path,
            ImportOptions(
                root=root or Path(),
                source=_SOURCES[source],
                on_conflict=_ON_CONFLICT[on_conflict],
                batch_size=batch_size,
            ),
            socket_path,
            admin_socket_path or socket_path.with_name(ADMIN_SOCKET_NAME),
            zooms=_zooms(min_zoom, max_zoom),
            root=root,
            with_policy=with_policy,
            as_json=as_json,
        )
        return
    if with_policy:
        raise click.UsageError("--policy is only for bundles")
    _check_flight(source, flight)
    if captured_at and _is_given(context, "captured_from"):
        raise click.UsageError("Give either --captured-at or --captured-from.")
    try:
        opened = open_source(
            source_path, _zooms(min_zoom, max_zoom), Scheme(scheme) if scheme else None
        )
        total = opened.count()
    except SourceError as error:
        fail(ExitCode.USAGE, str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if total == 0:
        fail(ExitCode.USAGE, f"{source_path}: contains no {{zoom}}/{{x}}/{{y}} images")
    if update_metadata and not _is_given(context, "socket_path"):
        socket_path = admin_socket_path or default_admin_socket_path()
    with connect(socket_path) as client, _unpack_directory(opened, into) as unpack_directory:
        if update_metadata:
            _check_admin_socket(client)
        images = unpack_directory.path if unpack_directory else opened.path
        info = describe_server(client)
        options = ImportOptions(
            root=_resolve_root(root, images, info.tiles_directory),
            source=_SOURCES[source],
            flight_id=flight,
            captured_at=captured_from if isinstance(captured_from, datetime) else captured_at,
            captured_from=CapturedFrom.MODIFIED
            if isinstance(captured_from, datetime)
            else captured_from,
            captures_given=captured_at is not None or _is_given(context, "captured_from"),
            update_metadata=update_metadata,
            on_conflict=_ON_CONFLICT[on_conflict],
            batch_size=min(batch_size, info.limits.max_batch_tiles),
        )
        report = ImportReport(opened.path, opened.scheme, total, as_json)
        run_import(client, options, unpack_directory, opened, report)


def _is_given(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def _check_admin_socket(client: TileCacheClient) -> None:
    """Ends the command if the socket does not serve UpdateTiles, before anything is imported."""
    try:
        client.admin.UpdateTiles(UpdateTilesRequest(), timeout=_ANSWER_TIMEOUT_S)
    except CallError as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            raise click.UsageError(
                f"--socket: {client.socket_path} is not the admin socket, "
                "which --update-metadata needs"
            ) from None
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:  # as a request without tiles
            raise


def _zooms(min_zoom: int | None, max_zoom: int | None) -> range | None:
    if min_zoom is None and max_zoom is None:
        return None
    zooms = range(min_zoom or 0, (MAX_ZOOM if max_zoom is None else max_zoom) + 1)
    if not zooms:
        raise click.UsageError("--min-zoom is greater than --max-zoom")
    return zooms


@contextmanager
def _unpack_directory(source: Source, into: Path | None) -> Iterator[UnpackDirectory | None]:
    if not source.unpacks:
        if into is not None:
            raise click.UsageError("--into is only for archives: a directory is not unpacked")
        yield None
        return
    try:
        directory = UnpackDirectory(into or source.path.with_suffix(""))
        directory.check_room(source.size_bytes(), source.count())
    except NoRoomError as error:
        fail(ExitCode.FAILED, str(error))
    except UnpackingError as error:
        fail(ExitCode.USAGE, str(error))
    with closing(directory):
        yield directory


def _check_bundle_options(context: click.Context) -> None:
    """A bundle says itself what these options say of other sources."""
    for name in _NOT_FOR_BUNDLES:
        if _is_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is not for bundles, which say it of each tile")


def _check_flight(source: str, flight: str | None) -> None:
    """Tiles made in flight name their flight, and others have none."""
    if source == ONBOARD_INGEST and flight is None:
        raise click.UsageError(
            "--source onboard_ingest needs --flight UUID: the flight that made the tiles"
        )
    if source != ONBOARD_INGEST and flight is not None:
        raise click.UsageError(
            f"--flight is only for --source onboard_ingest: tiles from {source} have no flight"
        )


def _resolve_root(root: Path | None, images: Path, configured: str) -> Path:
    """The directory that stored paths are relative to. Other programs read them relative to the
    daemon's tiles directory, so images elsewhere need a root that somebody has named."""
    tiles_directory = Path(configured).resolve() if configured else None
    if root is None and tiles_directory and not images.is_relative_to(tiles_directory):
        question = f"{images} is not inside the daemon's tiles directory ({tiles_directory})"
        if not sys.stdin.isatty():
            raise click.UsageError(
                f"{question}: give --root DIR, the directory that stored paths are relative to"
            )
        click.echo(f"{question}.", err=True)
        directory = click.Path(exists=True, file_okay=False, path_type=Path)
        root = click.prompt("Root that stored paths are relative to", type=directory, err=True)
    root = root.resolve() if root else tiles_directory or images
    if not images.is_relative_to(root):
        raise click.UsageError(f"--root: {images} is not inside {root}")
    try:
        str(images.relative_to(root)).encode()
    except UnicodeEncodeError:
        raise click.UsageError(
            f"--root: stored paths are UTF-8, which {printable(images)} is not: rename it"
        ) from None
    return root
