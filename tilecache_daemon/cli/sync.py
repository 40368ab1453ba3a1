"""`tilecache sync`."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click
import grpc

from tilecache.client import TileCacheClient
from tilecache.identity import MAX_ZOOM
from tilecache.v1.tile_metadata_store_pb2 import Region
from tilecache_daemon.cli.interruptions import INTERRUPTED
from tilecache_daemon.cli.output import (
    ExitCode,
    fail,
    json_option,
    socket_option,
)
from tilecache_daemon.cli.regions import optional_region_options, zooms_option
from tilecache_daemon.cli.roots import choose_root
from tilecache_daemon.cli.sync_report import SyncReport
from tilecache_daemon.ingest.image_store import ImageStore, StoreError
from tilecache_daemon.sync.fetching import Fetch, Files
from tilecache_daemon.sync.peer import Peer, PeerError
from tilecache_daemon.sync.pushing import Push

RESTART_TIMEOUT_S: Final = 60.0
_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_directory = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("sync")
@click.option(
    "--from",
    "address",
    required=True,
    metavar="SOCKET|HOST:PORT",
    help="The other daemon: the path of its socket, or the address of its TCP listener, which "
    "needs the --tls options.",
)
@zooms_option(required=False)
@optional_region_options
@click.option(
    "--copy-from",
    "source",
    type=_directory,
    metavar="DIR",
    help="The other daemon's tile directory, as far as it can be read here. Files are copied from "
    "it, verified, before their tiles are stored.  [default: the files are listed]",
)
@click.option(
    "--root",
    type=_directory,
    help="The tile directory that files are copied into.  [default: the daemon's tiles directory]",
)
@click.option(
    "--push-uploads",
    is_flag=True,
    help="First push all tiles that wait for upload, and mark those that the other daemon has.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--tls-ca", type=_file, help="The authority of the other daemon's certificate.")
@click.option("--tls-certificate", type=_file, help="The certificate to show to it.")
@click.option("--tls-key", type=_file, help="The key of that certificate.")
@json_option
@socket_option
def sync_command(
    address: str,
    zooms: tuple[int, ...],
    region: Region | None,
    source: Path | None,
    root: Path | None,
    push_uploads: bool,
    dry_run: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    as_json: bool,
    socket_path: Path,
) -> None:
    """Fetch the tiles that another daemon has, and this one lacks or has in an earlier version.

    Both compare digests of blocks of 32 x 32 cells, so that what is the same is not
    transferred. Of two tiles with the same key the one with the later capture stays; of
    two contents with the same capture time, the one with the larger hash. Nothing is
    deleted. Run it on both sides, and both have the same tiles.

    The paths of the files that are needed are printed, one a line, for rsync. A run can be
    interrupted and repeated.

    \b
    tilecache sync --from /run/other/tilecache.sock --copy-from /media/card/tiles
    tilecache sync --from ground.example:7443 --push-uploads \\
      --tls-ca ca.pem --tls-certificate me.pem --tls-key me.key
    tilecache sync --from aircraft.sock --dry-run > files.txt
    rsync --files-from=files.txt aircraft:/var/lib/tiles/ /var/lib/tiles/

    With --json: JSON Lines: of kind `file` for each file that is needed, `refused` for each
    tile that was not taken, then `summary`.
    """
    if region is not None and region.HasField("cell_range") and len(zooms) != 1:
        raise click.UsageError("--cells needs one --zoom.")
    if root and not source:
        raise click.UsageError("--root is only for --copy-from.")
    credentials = _credentials(address, tls_ca, tls_certificate, tls_key)
    report = SyncReport(as_json)
    with ExitStack() as stack:
        here = Peer(
            stack.enter_context(_open(str(socket_path), None)),
            restart_timeout_s=RESTART_TIMEOUT_S,
        )
        there = Peer(stack.enter_context(_open(address, credentials)))
        with _exit_codes():
            files = stack.enter_context(_files(here, source, root)) if source else None
            fetch = Fetch(here, there, files, report.add_refused, report.add_file)
            push = Push(here, there, report.add_refused)
        failure = None
        try:
            if push_uploads:
                push.preview() if dry_run else push.run()
            wanted = zooms or range(MAX_ZOOM + 1)
            fetch.preview(wanted, region) if dry_run else fetch.run(wanted, region)
        except (PeerError, StoreError, KeyboardInterrupt) as error:
            failure = error
        report.print_summary(fetch, push if push_uploads else None, there, dry_run, failure)
        with _exit_codes():
            if failure:
                raise failure
    if report.refused_count:
        sys.exit(ExitCode.IN_PART)


def _credentials(
    address: str, authority: Path | None, certificate: Path | None, key: Path | None
) -> grpc.ChannelCredentials | None:
    """For an address of TCP; None for a socket."""
    if "/" in address or ":" not in address:
        if authority or certificate or key:
            raise click.UsageError("The --tls options are only for HOST:PORT.")
        return None
    if not (authority and certificate and key):
        raise click.UsageError(f"{address} needs --tls-ca, --tls-certificate and --tls-key.")
    return grpc.ssl_channel_credentials(
        authority.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )


@contextmanager
def _open(address: str, credentials: grpc.ChannelCredentials | None) -> Iterator[TileCacheClient]:
    if credentials is None and not Path(address).exists():
        fail(ExitCode.UNREACHABLE, f"{address}: no such socket. Is the daemon running?")
    socket_path, tcp_address = (address, None) if credentials is None else (None, address)
    with TileCacheClient(socket_path, tcp_address=tcp_address, credentials=credentials) as client:
        yield client


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Ends the command with the code of a failure."""
    try:
        yield
    except PeerError as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            fail(ExitCode.REFUSED, f"{error}. It needs a daemon with contract 1.5.0 or later.")
        unreachable = error.code is grpc.StatusCode.UNAVAILABLE
        fail(ExitCode.UNREACHABLE if unreachable else ExitCode.REFUSED, str(error))
    except StoreError as error:
        fail(ExitCode.IN_PART, str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def _files(here: Peer, source: Path, root: Path | None) -> Iterator[Files]:
    directory = choose_root(root, here.describe_server().tiles_directory)
    try:
        files = Files(source, ImageStore(directory))
    except OSError as error:
        fail(ExitCode.USAGE, f"{source}: {error.strerror}")
    try:
        yield files
    finally:
        files.close()
