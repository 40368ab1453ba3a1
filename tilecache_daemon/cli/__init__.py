"""The `tilecache` command. Each command is a module of its own, loaded when it is called."""

import importlib
import os
from typing import Final

import click

from tilecache_daemon import __version__

_COMMANDS: Final = {
    "serve": ("tilecache_daemon.cli.serve", "Run the daemon."),
    "migrate": ("tilecache_daemon.cli.migrate", "Bring the database's schema up to date."),
    "status": ("tilecache_daemon.cli.status", "Show the state of a running daemon."),
    "derive": ("tilecache_daemon.cli.tiles", "Derive the ids of a tile."),
    "get": ("tilecache_daemon.cli.tiles", "Show one tile."),
    "query": ("tilecache_daemon.cli.tiles", "List the tiles of a region."),
    "import": ("tilecache_daemon.cli.ingest", "Fill the cache from tile files."),
    "coverage": ("tilecache_daemon.cli.coverage", "Show which cells of a region are covered."),
    "usage": ("tilecache_daemon.cli.usage", "Show what is stored, stale, full and waiting."),
    "evict": ("tilecache_daemon.cli.evict", "Make room: the least recently used tiles go."),
    "evictions": ("tilecache_daemon.cli.evictions", "Remove the files of tiles that went."),
    "delete": ("tilecache_daemon.cli.delete", "Delete tiles by id, region, source or age."),
    "sectors": ("tilecache_daemon.cli.policy", "List and change the sectors."),
    "rules": ("tilecache_daemon.cli.policy", "List and change the freshness rules."),
    "explain": ("tilecache_daemon.cli.policy", "Say why a tile has its label."),
    "uploads": ("tilecache_daemon.cli.uploads", "List and mark what waits for upload."),
}

# Before gRPC is loaded: its core writes lines of its own to stderr, one for each peer
# that fails to get in.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class _LazyGroup(click.Group):
    """Imports a command's module only when the command is called."""

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
    epilog="Exit codes: 0 done, 1 done in part or not found, 2 wrong usage, 3 no daemon or "
    "database answers, 4 refused by the daemon, 5 the daemon or a migration failed.",
)
@click.version_option(__version__, prog_name="tilecache")
def main() -> None:
    """Keep the metadata of satellite map tiles.

    Start with `tilecache serve`; fill the cache with `tilecache import DIRECTORY`.
    """
