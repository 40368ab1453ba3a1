"""The directory that stored paths are relative to."""

from pathlib import Path
from typing import Final

import click

from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest, GetServerInfoResponse

CALL_TIMEOUT_S: Final = 30

root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The tile directory that stored paths are relative to.  "
    "[default: the daemon's tiles directory]",
)


def describe_server(client: TileCacheClient) -> GetServerInfoResponse:
    """What the daemon says of itself. Raises CallError."""
    answer: GetServerInfoResponse = client.store.GetServerInfo(
        GetServerInfoRequest(), timeout=CALL_TIMEOUT_S
    )
    return answer


def choose_root(root: Path | None, tiles_directory: str) -> Path:
    """The root that was given, else the daemon's tiles directory. Ends the command if there is
    neither."""
    if root is None and not tiles_directory:
        raise click.UsageError("Give --root DIR: the daemon has no tiles directory configured.")
    return root or Path(tiles_directory)
