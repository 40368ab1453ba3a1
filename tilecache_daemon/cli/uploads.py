"""`tilecache uploads`: tiles made onboard, to be uploaded to the ground."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

import click

from tilecache.client import TileCacheClient
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon.cli.output import (
    ExitCode,
    connect,
    json_option,
    message_to_dict,
    print_json_line,
    socket_option,
)
from tilecache_daemon.cli.sizes import format_count, format_size
from tilecache_daemon.paging import read_pages

PAGE_SIZE: Final = 1_000
CALL_TIMEOUT_S: Final = 30

_OUTCOMES: Final = {
    pb.MARK_OUTCOME_MARKED: "marked",
    pb.MARK_OUTCOME_ALREADY_MARKED: "already marked",
    pb.MARK_OUTCOME_NOT_FOUND: "not found",
    pb.MARK_OUTCOME_CONTENT_DIFFERS: "not marked: the content has changed since the upload",
    pb.MARK_OUTCOME_NOT_UPLOADABLE: "not marked: not made onboard, so never uploaded",
}
_DONE: Final = {pb.MARK_OUTCOME_MARKED, pb.MARK_OUTCOME_ALREADY_MARKED}


@click.group(
    epilog="Exit codes: 0 success; 1 some tiles could not be marked; 2 wrong usage; 3 the daemon "
    "does not answer; 4 refused by the daemon.",
)
def uploads_command() -> None:
    """List the tiles made onboard that wait for upload, and mark uploaded tiles.

    \b
    tilecache uploads list --json > pending.jsonl
    (upload the listed files)
    tilecache uploads mark --from pending.jsonl
    """


@uploads_command.command("list")
@click.option("--flight", metavar="UUID", help="Only tiles of this flight.")
@socket_option
@json_option
def list_command(flight: str | None, socket_path: Path, as_json: bool) -> None:
    """List the tiles that wait for upload, oldest capture first.

    With --json: JSON Lines, one tile a line.
    """
    with connect(socket_path) as client:
        for tile in _pending(client, flight):
            if as_json:
                print_json_line(message_to_dict(tile))
            else:
                click.echo(
                    f"{tile.tile_uuid}  {tile.captured_at.ToDatetime():%Y-%m-%d %H:%M}  "
                    f"{format_size(tile.disk_bytes):>9}  {tile.file_path}"
                )


@uploads_command.command("mark")
@click.argument("tile_uuid", required=False)
@click.argument("content_sha256", required=False)
@click.option(
    "--from",
    "source",
    type=click.File(),
    help="A JSON Lines file of tiles, as `uploads list --json` prints it; - for stdin.",
)
@socket_option
@click.pass_context
def mark_command(
    context: click.Context,
    tile_uuid: str | None,
    content_sha256: str | None,
    source: TextIO | None,
    socket_path: Path,
) -> None:
    """Mark tiles as uploaded. A tile is marked only if it still has the uploaded content.

    \b
    tilecache uploads mark TILE_UUID CONTENT_SHA256
    tilecache uploads mark --from pending.jsonl
    """
    if source is not None and tile_uuid is None:
        tiles = list(_parse(source))
    elif source is None and tile_uuid is not None and content_sha256 is not None:
        tiles = [pb.UploadedTile(tile_uuid=tile_uuid, content_sha256=content_sha256)]
    else:
        raise click.UsageError("Give TILE_UUID and CONTENT_SHA256, or --from.")
    with connect(socket_path) as client:
        outcomes = _mark(client, tiles)
    for tile, outcome in zip(tiles, outcomes, strict=True):
        if outcome not in _DONE:
            click.echo(f"{tile.tile_uuid}: {_OUTCOMES[outcome]}", err=True)
    for outcome, count in sorted(Counter(outcomes).items()):
        click.echo(f"{format_count(count, 'tile')} {_OUTCOMES[outcome]}")
    context.exit(ExitCode.DONE if _DONE.issuperset(outcomes) else ExitCode.IN_PART)


def _pending(client: TileCacheClient, flight: str | None) -> Iterator[pb.TileMetadata]:
    request = pb.ListPendingUploadsRequest(page_size=PAGE_SIZE, flight_id=flight)
    for page in read_pages(client.store.ListPendingUploads, request, CALL_TIMEOUT_S):
        yield from page.tiles


def _parse(lines: Iterable[str]) -> Iterator[pb.UploadedTile]:
    for number, line in enumerate(lines, start=1):
        try:
            tile = json.loads(line)
            yield pb.UploadedTile(
                tile_uuid=tile["tile_uuid"], content_sha256=tile["content_sha256"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise click.UsageError(
                f"--from: line {number} is not a tile with tile_uuid and content_sha256: {error}"
            ) from error


def _mark(
    client: TileCacheClient, tiles: Sequence[pb.UploadedTile]
) -> list[pb.MarkOutcome.ValueType]:
    outcomes: list[pb.MarkOutcome.ValueType] = []
    for start in range(0, len(tiles), PAGE_SIZE):
        request = pb.MarkUploadedRequest(tiles=tiles[start : start + PAGE_SIZE])
        outcomes += client.store.MarkUploaded(request, timeout=CALL_TIMEOUT_S).outcomes
    return outcomes
