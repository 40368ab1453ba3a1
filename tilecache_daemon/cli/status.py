"""`tilecache status`."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest, GetServerInfoResponse

from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    json_option,
    message_to_dict,
    print_json,
    socket_option,
)


@click.command("status")
@socket_option
@json_option
@click.pass_context
def status_command(context: click.Context, socket_path: Path, as_json: bool) -> None:
    """Show the state of a running daemon on one screen.

    Exits with 0 if the daemon is ready and with 1 if it is alive but not ready.
    """
    with connect(socket_path) as client:
        ready = client.is_serving()
        info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=5)
    if as_json:
        print_json({"ready": ready, **message_to_dict(info)})
    else:
        Console().print(_screen(socket_path, info, ready=ready))
    context.exit(ExitCode.DONE if ready else ExitCode.IN_PART)


def _screen(socket_path: Path, info: GetServerInfoResponse, *, ready: bool) -> Table:
    clock = f"trusted, {info.clock.time.ToJsonString()}"
    if not info.clock.trusted:
        clock = f"NOT trusted: {info.clock.reason}"
    table = Table(show_header=False, box=None)
    for name, value in (
        ("daemon", f"{'ready' if ready else 'NOT ready'}, {socket_path}"),
        ("database", "answers" if info.database_available else "does NOT answer"),
        ("clock", clock),
        ("version", f"{info.daemon_version}, contract {info.contract_version}"),
        ("schema", info.schema_revision),
        ("namespace", info.namespace_uuid),
        ("tiles directory", info.tiles_directory or "not told"),
        ("accesses", f"at most {info.access_loss_bound.ToTimedelta()} may be lost in a crash"),
        (
            "limits",
            f"{info.limits.max_batch_tiles:,} tiles a batch, "
            f"{info.limits.max_request_items:,} items a request, "
            f"{info.limits.max_region_cells:,} cells a region, "
            f"{info.limits.max_concurrent_calls:,} calls at once",
        ),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    return table
