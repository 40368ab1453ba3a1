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
from tilecache_daemon.cli.output import ExitCode, fail, print_json
from tilecache_daemon.config import Config, ConfigError, holds_password, load_config
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
    help="A TOML file. Default: $TILECACHE_CONFIG, else /etc/tilecache/tilecache.toml if there.",
)
@click.option(
    "--dsn",
    help="Address of a PostgreSQL, as libpq reads it. Default: $DB_URL, "
    "else the daemon runs a PostgreSQL of its own. All users see it in the process list: "
    "a password belongs into the environment, the file, or a passfile.",
)
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Where to listen.")
@click.option(
    "--state-directory",
    type=click.Path(path_type=Path),
    help="Where the daemon's own PostgreSQL keeps its data.",
)
@click.option(
    "--tiles-directory",
    type=click.Path(path_type=Path),
    help="Where the pictures lie; told to clients.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["auto", "json", "text"]))
@click.option("--print-config", is_flag=True, help="Print the settings in force, and exit.")
def serve_command(config_file: Path | None, print_config: bool, **flags: object) -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    Each setting may also stand in the configuration file or in the
    environment (TILECACHE_ and the setting's name in capitals); a flag counts
    more than the environment, and that more than the file.
    """
    try:
        config = load_config(config_file, flags)
    except ConfigError as error:
        fail(ExitCode.USAGE, str(error))
    if print_config:
        print_json(config.describe())
        return
    configure_logging(config.log_level, config.log_format)
    if flags["dsn"] and holds_password(str(flags["dsn"])):
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

    def say(step: str) -> None:
        log.info("starting", step=step)
        systemd.notify(STATUS=step)

    daemon = Daemon(config)
    starting = asyncio.create_task(daemon.start(say))
    stopping = asyncio.create_task(stopped.wait())
    async with systemd.starting():
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        _collect_garbage_seldom()
        if sys.stdout.isatty():
            _greet(config)
        async with systemd.serving(config.socket_path, lambda: daemon.condition):
            await stopping
        log.info("stopping")
        await daemon.stop()
    else:
        starting.cancel()
        await asyncio.wait({starting})
    log.info("stopped")


def _greet(config: Config) -> None:
    own = (
        ""
        if config.socket_path == Path("/run/tilecache/tilecache.sock")
        else (f" --socket {config.socket_path}")
    )
    click.echo(
        f"tilecache serves on {config.socket_path}\n"
        "Try next, in another terminal:\n"
        f"  tilecache status{own}\n"
        f"  tilecache import DIRECTORY{own}\n"
        f"  tilecache coverage --bbox -85,-180,85,180 --zoom 3{own}\n"
        "Ctrl-C stops it."
    )


def _collect_garbage_seldom() -> None:
    """Rows make no cycles, but each thousand of them would have all memory searched for some."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
