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
from tilecache_daemon.cli.activity import Activity, CallActivity, TaskActivity
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    json_option,
    message_to_dict,
    print_json,
    socket_option,
)
from tilecache_daemon.cli.sizes import format_count, format_size, format_tiles

CALL_TIMEOUT_S = 5
PERCENTILES = (50, 99)
MAX_CALL_ROWS = 12
NAME_WIDTH = len("pending removal")
ACTIVITY_COUNTS = (
    "calls_under_way",
    "calls_max",
    "watches_open",
    "watches_max",
    "pool_connections",
    "pool_connections_in_use",
    "pool_connections_max",
    "pool_waiting",
    "accesses_pending",
    "migrations_applied",
)
ACTIVITY_TIMES = ("migration_seconds", "uptime_seconds")


class Status(NamedTuple):
    """The state of a daemon."""

    ready: bool
    info: GetServerInfoResponse
    admin: "AdminStatus | None"
    """None without access to the admin socket."""


class AdminStatus(NamedTuple):
    """What is available on the admin socket only."""

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
    show_default=f"$TILECACHE_ADMIN_SOCKET_PATH, else {ADMIN_SOCKET_NAME} beside --socket",
    help="The admin socket, which provides usage and activity.",
)
@json_option
@click.option("--watch", is_flag=True, help="Refresh the screen until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.05),
    default=2.0,
    show_default=True,
    help="Seconds between refreshes.",
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

    Exits with 0 if the daemon is ready, and with 1 if it runs but is not ready. With
    --watch, waits for a daemon that is away, and always exits with 0.
    """
    admin_socket_path = admin_socket_path or socket_path.with_name(ADMIN_SOCKET_NAME)
    if watch and as_json:
        raise click.UsageError("--watch and --json cannot be combined")
    if watch:
        _watch(socket_path, admin_socket_path, interval_s)
        return
    with connect(socket_path) as client:
        status = _read(client, admin_socket_path)
    if as_json:
        print_json(_to_dict(status))
    else:
        Console().print(_screen(socket_path, status))
    context.exit(ExitCode.DONE if status.ready else ExitCode.IN_PART)


def _watch(socket_path: Path, admin_socket_path: Path, interval_s: float) -> None:
    stopped = threading.Event()
    # A KeyboardInterrupt that is raised in one of gRPC's callbacks is lost.
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    with TileCacheClient(socket_path) as client, Live(auto_refresh=False) as live:
        while not stopped.is_set():
            try:
                shown: RenderableType = _screen(socket_path, _read(client, admin_socket_path))
            except CallError as error:
                shown = Text(f"{socket_path}: the daemon does not answer: {error.message}", "red")
            live.update(shown, refresh=True)
            stopped.wait(interval_s)


def _read(client: TileCacheClient, admin_socket_path: Path) -> Status:
    ready = client.is_serving()
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
    return Status(ready, info, _read_admin(admin_socket_path))


def _read_admin(admin_socket_path: Path) -> AdminStatus | None:
    if not os.access(admin_socket_path, os.W_OK):
        return None
    with TileCacheClient(admin_socket_path) as admin:
        try:
            metrics = admin.admin.GetMetrics(GetMetricsRequest(), timeout=CALL_TIMEOUT_S)
        except CallError:
            return None
        return AdminStatus(Activity.parse(metrics.text), _read_usage(admin))


def _read_usage(admin: TileCacheClient) -> GetStorageUsageResponse | None:
    try:
        usage: GetStorageUsageResponse = admin.admin.GetStorageUsage(
            GetStorageUsageRequest(), timeout=CALL_TIMEOUT_S
        )
    except CallError:
        return None
    return usage


def _to_dict(status: Status) -> dict[str, object]:
    fields = {"ready": status.ready, **message_to_dict(status.info)}
    if status.admin:
        activity, usage = status.admin
        fields["activity"] = _activity_to_dict(activity)
        if usage:
            fields["usage"] = message_to_dict(usage, zeros=True)
    return fields


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
        "background_tasks": [task._asdict() for task in activity.background_tasks],
        "evicted_tiles": evicted.total,
        **({"eviction_age_p50_s": evicted.percentile(50)} if evicted.total else {}),
    }


def _screen(socket_path: Path, status: Status) -> RenderableType:
    admin = status.admin
    parts: list[RenderableType] = [_rows((*_state(socket_path, status), *_stored(admin)))]
    if admin:
        parts += [_rows(_activity(admin.activity)), "", _calls(admin.activity.calls), ""]
    return Group(*parts, _rows(_about(status.info)))


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", min_width=NAME_WIDTH)
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _calls(calls: list[CallActivity]) -> Table:
    table = Table(box=None)
    table.add_column("RPC (since start)")
    for column in ("calls", *(f"p{percent}" for percent in PERCENTILES)):
        table.add_column(column, justify="right")
    table.add_column("failed", no_wrap=True)
    for call in calls[:MAX_CALL_ROWS]:
        percentiles = (call.seconds.format_percentile(percent) for percent in PERCENTILES)
        failed = ", ".join(f"{count:,} {code}" for code, count in call.failed.items())
        table.add_row(call.method, f"{call.ended:,}", *percentiles, failed)
    if others := calls[MAX_CALL_ROWS:]:
        count = sum(call.ended for call in others)
        table.add_row(f"{len(others)} others", f"{count:,}", "", "", "--json lists all")
    return table


def _state(socket_path: Path, status: Status) -> Iterator[tuple[str, str]]:
    info = status.info
    yield "daemon", f"{'ready' if status.ready else 'NOT ready'}, {socket_path}"
    yield "database", "available" if info.database_available else "NOT available"
    clock = f"trusted, {info.clock.time.ToJsonString()}"
    yield "clock", clock if info.clock.trusted else f"NOT trusted: {info.clock.reason}"
    yield "cache", _cache(info.cache)


def _cache(cache: CacheStatus) -> str:
    if not cache.max_bytes:
        return "disabled (cache_max_bytes is 0)"
    reads = cache.hits + cache.misses
    hit_rate = f", {cache.hits / reads:.1%} hits of {reads:,} reads" if reads else ""
    cached = format_tiles(cache.tiles, cache.used_bytes)
    return f"{cached} of {format_size(cache.max_bytes)}{hit_rate}"


def _stored(admin: AdminStatus | None) -> Iterator[tuple[str, str]]:
    if not admin:
        yield "stored", "available on the admin socket only"
    elif not admin.usage:
        yield "stored", "unknown while the database is not available"
    else:
        total, ceiling = admin.usage.total, admin.usage.max_used_bytes
        share = (
            f"{total.used_bytes / ceiling:.0%} of {format_size(ceiling)}"
            if ceiling
            else "no ceiling"
        )
        yield "stored", f"{format_tiles(total.tile_count, total.used_bytes)}, {share}"
        upload, removal = admin.usage.pending_upload, admin.usage.pending_removal
        yield "pending upload", format_tiles(upload.tile_count, upload.used_bytes)
        yield "pending removal", format_tiles(removal.tile_count, removal.used_bytes)


def _background(tasks: list[TaskActivity]) -> str:
    failed = [
        f"{task.name}: {'running' if task.running else 'NOT running'}, failures: {task.failures}"
        for task in tasks
        if task.failures or not task.running
    ]
    return "; ".join(failed) or f"{len(tasks)} tasks, all running, no failures"


def _activity(activity: Activity) -> Iterator[tuple[str, str]]:
    def count(name: str) -> str:
        return f"{activity.value(f'tilecache_{name}'):,.0f}"

    evicted = activity.distribution("tilecache_eviction_age_seconds")
    median = f", half of them unused for {evicted.format_percentile(50)}" if evicted.total else ""
    yield "evicted", f"{format_count(evicted.total, 'tile')} since start{median}"
    yield (
        "active calls",
        f"{count('calls_under_way')} of {count('calls_max')}, "
        f"replicas {count('watches_open')} of {count('watches_max')}",
    )
    yield (
        "connections",
        f"{count('pool_connections_in_use')} of {count('pool_connections')} in use, "
        f"maximum {count('pool_connections_max')}, {count('pool_waiting')} calls waiting",
    )
    yield "pending writes", f"{count('accesses_pending')} accesses"
    yield "background", _background(activity.background_tasks)
    yield "uptime", str(timedelta(seconds=round(activity.value("tilecache_uptime_seconds"))))
    yield (
        "migrations",
        f"{count('migrations_applied')} applied at start, "
        f"in {activity.value('tilecache_migration_seconds'):.3f} s",
    )


def _about(info: GetServerInfoResponse) -> Iterator[tuple[str, str]]:
    yield "version", f"{info.daemon_version}, contract {info.contract_version}"
    yield "schema", info.schema_revision
    yield "namespace", info.namespace_uuid
    yield "tiles directory", info.tiles_directory or "not configured"
    bound = info.access_loss_bound.ToTimedelta()
    yield "access loss", f"a crash loses at most the accesses of the last {bound}"
    limits = info.limits
    yield (
        "limits",
        f"{limits.max_batch_tiles:,} tiles per batch, "
        f"{limits.max_request_items:,} items per request, "
        f"{limits.max_region_cells:,} cells per region, "
        f"{limits.max_concurrent_calls:,} concurrent calls",
    )
