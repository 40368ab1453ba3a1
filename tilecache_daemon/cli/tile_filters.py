"""Filters of the commands that take tiles of any zoom and without a region."""

import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from tilecache.identity import SOURCE_NUMBERS
from tilecache.v1.tile_metadata_store_pb2 import ListTilesRequest
from tilecache_daemon.cli.regions import zooms_option
from tilecache_daemon.cli.tiles import LABEL_NUMBERS, source_choice
from tilecache_daemon.cli.times import Moment, to_timestamp


def tile_filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the filters of ListTiles; the command gets them as `request`."""

    @zooms_option(required=False)
    @click.option(
        "--source",
        "sources",
        type=source_choice,
        multiple=True,
        help="Only this source. May be repeated.",
    )
    @click.option("--flight", metavar="UUID", help="Only tiles of this flight.")
    @click.option(
        "--captured-after", type=Moment(), help="Only tiles captured after this time (UTC)."
    )
    @click.option(
        "--captured-before", type=Moment(), help="Only tiles captured before this time (UTC)."
    )
    @click.option(
        "--label",
        "labels",
        type=click.Choice(sorted(LABEL_NUMBERS)),
        multiple=True,
        help="Only this label. May be repeated.  [default: all]",
    )
    @click.option("--pending-uploads", is_flag=True, help="Only tiles that wait for upload.")
    @functools.wraps(command)
    def with_request(
        *args: Any,
        zooms: tuple[int, ...],
        sources: tuple[str, ...],
        flight: str | None,
        captured_after: datetime | None,
        captured_before: datetime | None,
        labels: tuple[str, ...],
        pending_uploads: bool,
        **options: Any,
    ) -> Any:
        request = ListTilesRequest(
            zooms=zooms,
            sources=[SOURCE_NUMBERS[source] for source in sources],
            flight_id=flight,
            captured_after=to_timestamp(captured_after),
            captured_before=to_timestamp(captured_before),
            labels=[LABEL_NUMBERS[label] for label in labels],
            pending_upload=pending_uploads,
        )
        return command(*args, request=request, **options)

    return with_request
