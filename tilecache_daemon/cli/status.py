"""`tilecache status`."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.paths import ADMIN_SOCKET_NAME
from tilecache.v1.tile_cache_admin_pb2 import (
    GetMetricsRequest,
    GetStorageUsageRequest,
    GetStorageUsageResponse,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    CacheStatus,
    GetServerInfoRequest,
    GetServerInfoResponse,
)
from tilecache_daemon.cli.activity import Activity, CallActivity
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    json_option,
    message_to_dict,
    print_json,
    socket_option,
)
from tilecache_daemon.cli.sizes import format_size, format_tiles

CALL_TIMEOUT_S = 5
PERCENTILES = (50, 99)
MAX_CALL_ROWS = 12
NAME_WIDTH = len("tiles directory")
ACTIVITY_COUNTS = (
    "calls_under_way",
    "calls_max",
    "pool_connections",
    "pool_connections_in_use",
    "pool_connections_max",
    "pool_waiting",
    "accesses_pending",
    "migrations_applied",
)
ACTIVITY_TIMES = ("migration_seconds", "uptime_seconds")


class Reading(NamedTuple):
    """What a daemon says of itself; some of it only to those who may ask."""

    ready: bool
    info: GetServerInfoResponse
    told_administrators: "ToldAdministrators | None"


class ToldAdministrators(NamedTuple):
    """What is told on the administrator's socket only."""

    activity: Activity
    usage: GetStorageUsageResponse | None
    """None while PostgreSQL does not answer."""


@click.command("status")
@socket_option
@click.option(
    "--admin-socket",
    "admin_socket_path",
    type=click.Path(path_type=Path),
    envvar="TILECACHE_ADMIN_SOCKET_PATH",
    show_default=f"{ADMIN_SOCKET_NAME} beside the other",
    help="The socket for administrators, where usage and activity are told.",
)
@json_option
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.05),
    default=2.0,
    show_default=True,
    help="Seconds from one time to the next.",
)
@click.pass_context
def status_command(
    context: click.Context,
    socket_path: Path,
    admin_socket_path: Path | None,
    as_json: bool,
    watch: bool,
    interval_s: float,
) -> None:
    """Show the state of a running daemon on one screen.

    Exits with 0 if the daemon is ready and with 1 if it is alive but not ready;
    with --watch always with 0, and a daemon that goes away is waited for.
    """
    admin_socket_path = admin_socket_path or socket_path.with_name(ADMIN_SOCKET_NAME)
    if watch and as_json:
        raise click.UsageError("--watch is for people: programs ask for --json when they like")
    if watch:
        _watch(socket_path, admin_socket_path, interval_s)
        return
    with connect(socket_path) as client:
        reading = _read(client, admin_socket_path)
    if as_json:
        print_json(_to_dict(reading))
    else:
        Console().print(_screen(socket_path, reading))
    context.exit(ExitCode.DONE if reading.ready else ExitCode.IN_PART)


def _watch(socket_path: Path, admin_socket_path: Path, interval_s: float) -> None:
    stopped = threading.Event()
    # A KeyboardInterrupt would be lost where it meets one of gRPC's callbacks.
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    with TileCacheClient(socket_path) as client, Live(auto_refresh=False) as live:
        while not stopped.is_set():
            try:
                shown: RenderableType = _screen(socket_path, _read(client, admin_socket_path))
            except CallError as error:
                shown = Text(f"{socket_path}: no daemon answers: {error.message}", "red")
            live.update(shown, refresh=True)
            stopped.wait(interval_s)


def _read(client: TileCacheClient, admin_socket_path: Path) -> Reading:
    ready = client.is_serving()
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
    return Reading(ready, info, _ask_as_administrator(admin_socket_path))


def _ask_as_administrator(admin_socket_path: Path) -> ToldAdministrators | None:
    if not os.access(admin_socket_path, os.W_OK):
        return None
    with TileCacheClient(admin_socket_path) as admin:
        try:
            metrics = admin.admin.GetMetrics(GetMetricsRequest(), timeout=CALL_TIMEOUT_S)
        except CallError:
            return None
        return ToldAdministrators(Activity.read(metrics.text), _read_usage(admin))


def _read_usage(admin: TileCacheClient) -> GetStorageUsageResponse | None:
    try:
        usage: GetStorageUsageResponse = admin.admin.GetStorageUsage(
            GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S
        )
    except CallError:
        return None
    return usage


def _to_dict(reading: Reading) -> dict[str, object]:
    told = {"ready": reading.ready, **message_to_dict(reading.info)}
    if reading.told_administrators:
        activity, usage = reading.told_administrators
        told["activity"] = _activity_to_dict(activity)
        if usage:
            told["usage"] = message_to_dict(usage, zeros=True)
    return told


def _activity_to_dict(activity: Activity) -> dict[str, object]:
    evicted = activity.distribution("tilecache_eviction_age_seconds")
    return {
        "calls": [
            {
                "method": call.method,
                "ended": call.ended,
                "failed": sum(call.failed.values()),
                "failed_by_code": call.failed,
                **{f"p{percent}_s": call.seconds.percentile(percent) for percent in PERCENTILES},
            }
            for call in activity.calls
        ],
        **{name: int(activity.value(f"tilecache_{name}")) for name in ACTIVITY_COUNTS},
        **{name: activity.value(f"tilecache_{name}") for name in ACTIVITY_TIMES},
        "evicted_tiles": evicted.total,
        **({"eviction_age_p50_s": evicted.percentile(50)} if evicted.total else {}),
    }


def _screen(socket_path: Path, reading: Reading) -> RenderableType:
    state, told = reading.info, reading.told_administrators
    parts: list[RenderableType] = [_rows((*_state(socket_path, reading), *_stored(told)))]
    if told:
        parts += [_rows(_busy(told.activity)), "", _calls(told.activity.calls), ""]
    return Group(*parts, _rows(_about(state)))


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", min_width=NAME_WIDTH)
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _calls(calls: list[CallActivity]) -> Table:
    table = Table(box=None)
    table.add_column("calls since the start")
    for column in ("ended", "half took", "99% took"):
        table.add_column(column, justify="right")
    table.add_column("failed", no_wrap=True)
    for call in calls[:MAX_CALL_ROWS]:
        took = (call.seconds.format_percentile(percent) for percent in PERCENTILES)
        failed = ", ".join(f"{count:,} {code}" for code, count in call.failed.items())
        table.add_row(call.method, f"{call.ended:,}", *took, failed)
    if others := calls[MAX_CALL_ROWS:]:
        count = sum(call.ended for call in others)
        table.add_row(f"{len(others)} others", f"{count:,}", "", "", "--json tells each")
    return table


def _state(socket_path: Path, reading: Reading) -> Iterator[tuple[str, str]]:
    info = reading.info
    yield "daemon", f"{'ready' if reading.ready else 'NOT ready'}, {socket_path}"
    yield "database", "answers" if info.database_available else "does NOT answer"
    clock = f"trusted, {info.clock.time.ToJsonString()}"
    yield "clock", clock if info.clock.trusted else f"NOT trusted: {info.clock.reason}"
    yield "in memory", _cache(info.cache)


def _cache(cache: CacheStatus) -> str:
    if not cache.max_bytes:
        return "nothing: cache_max_bytes is 0"
    reads = cache.hits + cache.misses
    rate = f", {cache.hits / reads:.1%} of {reads:,} reads answered from it" if reads else ""
    held = format_tiles(cache.tiles, cache.used_bytes)
    return f"{held} of {format_size(cache.max_bytes)}{rate}"


def _stored(told: ToldAdministrators | None) -> Iterator[tuple[str, str]]:
    if not told:
        yield "stored", "told on the administrator's socket only"
    elif not told.usage:
        yield "stored", "not known while the database does not answer"
    else:
        total, ceiling = told.usage.total, told.usage.max_used_bytes
        share = (
            f"{total.used_bytes / ceiling:.0%} of {format_size(ceiling)}"
            if ceiling
            else "no ceiling"
        )
        yield "stored", f"{format_tiles(total.tile_count, total.used_bytes)}, {share}"
        pending, removal = told.usage.pending_upload, told.usage.pending_removal
        yield "to upload", format_tiles(pending.tile_count, pending.used_bytes)
        yield "to remove", format_tiles(removal.tile_count, removal.used_bytes)


def _busy(activity: Activity) -> Iterator[tuple[str, str]]:
    def count(name: str) -> str:
        return f"{activity.value(f'tilecache_{name}'):,.0f}"

    evicted = activity.distribution("tilecache_eviction_age_seconds")
    ages = f", half unused for {evicted.format_percentile(50)}" if evicted.total else ""
    yield "evicted", f"{evicted.total:,} since the start{ages}"
    yield "calls now", f"{count('calls_under_way')} of {count('calls_max')}"
    yield (
        "connections",
        f"{count('pool_connections_in_use')} in use of {count('pool_connections')}, "
        f"{count('pool_connections_max')} at most; waiting calls: {count('pool_waiting')}",
    )
    yield "to write", f"accesses: {count('accesses_pending')}"
    yield "up for", str(timedelta(seconds=round(activity.value("tilecache_uptime_seconds"))))
    yield (
        "migrated",
        f"revisions applied by this start: {count('migrations_applied')}, "
        f"in {activity.value('tilecache_migration_seconds'):.3f} s",
    )


def _about(info: GetServerInfoResponse) -> Iterator[tuple[str, str]]:
    yield "version", f"{info.daemon_version}, contract {info.contract_version}"
    yield "schema", info.schema_revision
    yield "namespace", info.namespace_uuid
    yield "tiles directory", info.tiles_directory or "not told"
    bound = info.access_loss_bound.ToTimedelta()
    yield "accesses", f"at most {bound} may be lost in a crash"
    limits = info.limits
    yield (
        "limits",
        f"{limits.max_batch_tiles:,} tiles a batch, {limits.max_request_items:,} items a request, "
        f"{limits.max_region_cells:,} cells a region, "
        f"{limits.max_concurrent_calls:,} calls at once",
    )
