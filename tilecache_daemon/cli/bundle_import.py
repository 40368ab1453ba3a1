"""`tilecache import` of a bundle."""

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tilecache.client import TileCacheClient
from tilecache_daemon.cli.import_report import ImportReport
from tilecache_daemon.cli.import_run import run_import
from tilecache_daemon.cli.interruptions import INTERRUPTED
from tilecache_daemon.cli.output import ExitCode, connect, fail
from tilecache_daemon.cli.policy_copy import (
    PolicyItem,
    apply_policy,
    describe_policy,
    record_flights,
)
from tilecache_daemon.cli.roots import choose_root, describe_server
from tilecache_daemon.cli.sizes import format_count
from tilecache_daemon.ingest.bundle import Bundle
from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.image_store import ImageStore
from tilecache_daemon.ingest.importer import ImportOptions
from tilecache_daemon.ingest.unpacking import NoRoomError, UnpackingError


def import_bundle(
    path: Path,
    options: ImportOptions,
    socket_path: Path,
    admin_socket_path: Path,
    *,
    root: Path | None,
    zooms: range | None,
    with_policy: bool,
    as_json: bool,
) -> None:
    """Imports a bundle into the tiles directory (`root`, else the daemon's), then prints the
    report and exits with its code."""
    try:
        bundle = Bundle(path, zooms)
    except SourceError as error:
        fail(ExitCode.USAGE, str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    with closing(bundle), connect(socket_path) as client:
        info = describe_server(client)
        with closing(_open_store(choose_root(root, info.tiles_directory), bundle)) as store:
            report = ImportReport(bundle.path, bundle.scheme, bundle.count(), as_json)
            _copy_what_belongs_to_it(bundle, admin_socket_path, report, with_policy=with_policy)
            batch_size = min(options.batch_size, info.limits.max_batch_tiles)
            options = replace(options, root=store.root, batch_size=batch_size)
            run_import(client, options, None, bundle, report, store)


def _open_store(root: Path, bundle: Bundle) -> ImageStore:
    try:
        store = ImageStore(root)
    except UnpackingError as error:
        fail(ExitCode.USAGE, str(error))
    try:
        try:
            store.check_room(bundle.size_bytes())
        except NoRoomError:
            # Perhaps a part of it is there already.
            store.check_room(bundle.missing_bytes(store.root))
    except NoRoomError as error:
        store.close()
        fail(ExitCode.FAILED, str(error))
    return store


def _copy_what_belongs_to_it(
    bundle: Bundle, admin_socket_path: Path, report: ImportReport, *, with_policy: bool
) -> None:
    """Sets sectors, rules and pins before there are tiles, so that these get their labels and are
    not evicted; and records flights."""
    try:
        flights, policy = list(bundle.flights()), list(bundle.policy())
    except SourceError as error:
        fail(ExitCode.USAGE, str(error))
    if policy and not with_policy:
        report.notes.append(f"Not set without --policy: {describe_policy(policy)}")
    wanted = policy if with_policy else []
    if not (flights or wanted):
        return
    if not (wanted or admin_socket_path.exists()):
        report.problems.append(
            f"Not recorded: {format_count(len(flights), 'flight')}: {admin_socket_path}: no such "
            "socket; give --admin-socket"
        )
        return
    with connect(admin_socket_path) as admin:
        _apply(admin, bundle, wanted, report)


def _apply(
    admin: TileCacheClient, bundle: Bundle, wanted: list[PolicyItem], report: ImportReport
) -> None:
    if wanted:
        done, problems = apply_policy(admin, wanted)
        report.notes.append(f"Set {describe_policy(done)}")
        report.problems += problems
    recorded, problems = record_flights(admin, bundle.flights())
    if recorded:
        report.notes.append(f"Recorded {format_count(recorded, 'flight')}")
    report.problems += problems
