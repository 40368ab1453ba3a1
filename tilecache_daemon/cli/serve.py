"""`tilecache serve`."""

import asyncio
import gc
import signal
import sys
from pathlib import Path

import click
import structlog

from tilecache.identity import IdentityProofError
from tilecache_daemon import systemd
from tilecache_daemon.cli.output import DSN_HELP, ExitCode, fail, print_json
from tilecache_daemon.config import Config, ConfigError, contains_password, load_config
from tilecache_daemon.daemon import Daemon
from tilecache_daemon.errors import MigrationError, TileCacheError
from tilecache_daemon.logs import configure_logging
from tilecache_daemon.postgres.errors import EmbeddedPostgresError
from tilecache_daemon.rpc.server import ListenError
from tilecache_daemon.schema.migrator import DatabaseUnreachableError

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@click.command("serve")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="$TILECACHE_CONFIG, else /etc/tilecache/tilecache.toml if it exists",
    help="Configuration file, in TOML.",
)
@click.option(
    "--dsn",
    metavar="DSN",
    show_default="dsn of the configuration, else $DB_URL, else a PostgreSQL of the daemon's own",
    help=DSN_HELP,
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="The socket to listen on. The admin socket is beside it, unless admin_socket_path is set.",
)
@click.option(
    "--state-directory",
    type=click.Path(path_type=Path),
    help="Where the daemon's own PostgreSQL stores its data.",
)
@click.option(
    "--tiles-directory",
    type=click.Path(path_type=Path),
    help="Where the image files are stored. Only reported to clients.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The lowest level that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "text"]),
    help="auto: text on a terminal, else JSON.",
)
@click.option("--print-config", is_flag=True, help="Print the effective settings and exit.")
def serve_command(config_file: Path | None, print_config: bool, **flags: object) -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    Every setting can also be given in the environment (TILECACHE_ and its name in
    capitals) or in the configuration file. Options override the environment, and the
    environment overrides the file.
    """
    try:
        config = load_config(config_file, flags)
    except ConfigError as error:
        fail(ExitCode.USAGE, str(error))
    if print_config:
        print_json(config.describe())
        return
    configure_logging(config.log_level, config.log_format)
    if flags["dsn"] and contains_password(str(flags["dsn"])):
        log.warning("password_in_process_list", option="--dsn")
    try:
        asyncio.run(_serve(config))
    except ConfigError as error:
        fail(ExitCode.USAGE, str(error))
    except DatabaseUnreachableError as error:
        fail(ExitCode.UNREACHABLE, str(error))
    except (
        EmbeddedPostgresError,
        IdentityProofError,
        ListenError,
        MigrationError,
        TileCacheError,
    ) as error:
        fail(ExitCode.FAILED, str(error))


async def _serve(config: Config) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    def report(step: str) -> None:
        log.info("starting", step=step)
        systemd.notify(STATUS=step)

    daemon = Daemon(config)
    starting = asyncio.create_task(daemon.start(report))
    stopping = asyncio.create_task(stopped.wait())
    async with systemd.starting():
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        _collect_garbage_rarely()
        if sys.stdout.isatty():
            _print_next_steps(config)
        async with systemd.serving(config.socket_path, lambda: daemon.condition):
            await stopping
        log.info("stopping")
        await daemon.stop()
    else:
        starting.cancel()
        await asyncio.wait({starting})
    log.info("stopped")


def _print_next_steps(config: Config) -> None:
    option = (
        ""
        if config.socket_path == Path("/run/tilecache/tilecache.sock")
        else (f" --socket {config.socket_path}")
    )
    click.echo(
        f"Listening on {config.socket_path}\n"
        "Next steps, in another terminal:\n"
        f"  tilecache status{option}\n"
        f"  tilecache import DIRECTORY{option}\n"
        f"  tilecache coverage --bbox -85,-180,85,180 --zoom 3{option}\n"
        "Press Ctrl-C to stop."
    )


def _collect_garbage_rarely() -> None:
    """Raises the thresholds of the garbage collector.

    Rows have no reference cycles, but with the default thresholds allocating many of
    them triggers full collections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
