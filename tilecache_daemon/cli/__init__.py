"""The `tilecache` command. The module of a subcommand is imported when it is called."""

import importlib
import os
from typing import Final

import click

from tilecache_daemon import __version__

_COMMANDS: Final = {
    "serve": ("tilecache_daemon.cli.serve", "Run the daemon."),
    "migrate": ("tilecache_daemon.cli.migrate", "Upgrade, downgrade or show the database schema."),
    "status": ("tilecache_daemon.cli.status", "Show the state of a running daemon."),
    "derive": ("tilecache_daemon.cli.tiles", "Derive the ids of a tile."),
    "get": ("tilecache_daemon.cli.tiles", "Show one tile."),
    "query": ("tilecache_daemon.cli.tiles", "List the tiles of a region."),
    "list": ("tilecache_daemon.cli.list_tiles", "List all tiles, of any zoom, as they come."),
    "import": (
        "tilecache_daemon.cli.ingest",
        "Import tiles from a directory, an archive or a bundle.",
    ),
    "export": ("tilecache_daemon.cli.export", "Export tiles with their images as a bundle."),
    "sync": ("tilecache_daemon.cli.sync", "Fetch what another daemon has newer."),
    "coverage": ("tilecache_daemon.cli.coverage", "Show which cells of a region are covered."),
    "missing": (
        "tilecache_daemon.cli.missing",
        "List the cells of a region that are to be fetched.",
    ),
    "expiring": ("tilecache_daemon.cli.expiring", "Show which tiles expire within a time."),
    "usage": ("tilecache_daemon.cli.usage", "Show disk usage, stale tiles and pending work."),
    "evict": ("tilecache_daemon.cli.evict", "Evict the least recently used tiles."),
    "evictions": ("tilecache_daemon.cli.evictions", "List and remove the files of evicted tiles."),
    "delete": ("tilecache_daemon.cli.delete", "Delete tiles by id, region, source or age."),
    "verify": ("tilecache_daemon.cli.verify", "Compare the stored tiles with their files."),
    "pins": ("tilecache_daemon.cli.pins", "Set, list and delete pins: areas that stay."),
    "flights": ("tilecache_daemon.cli.flights", "List flights and their tiles; name them."),
    "sectors": ("tilecache_daemon.cli.policy", "List and change the sectors."),
    "rules": ("tilecache_daemon.cli.policy", "List and change the freshness rules."),
    "explain": ("tilecache_daemon.cli.policy", "Explain the freshness label of a tile."),
    "uploads": ("tilecache_daemon.cli.uploads", "List pending uploads, and mark uploaded tiles."),
}

# To be set before gRPC is imported. Otherwise its core logs a line to stderr for each
# peer whose handshake fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class _LazyGroup(click.Group):
    """Imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success; 1 partial success, or not found; 2 wrong usage; 3 the daemon or "
    "the database does not answer; 4 refused by the daemon; 5 the daemon or a migration failed.",
)
@click.version_option(__version__, prog_name="tilecache")
def main() -> None:
    """Store the metadata of satellite map tiles.

    Start the daemon with `tilecache serve`, then import tiles with `tilecache import DIRECTORY`.
    """
