"""`tilecache sectors`, `rules` and `explain`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilecache.client import TileCacheClient
from tilecache.identity import GOOGLEMAPS
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import BoundingBox
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    fail,
    json_option,
    message_to_dict,
    print_json,
    print_table,
)
from tilecache_daemon.cli.regions import box_option
from tilecache_daemon.cli.removal import confirm, removal_options, require_confirmation
from tilecache_daemon.cli.sizes import format_count
from tilecache_daemon.cli.tiles import LABEL_TEXTS, source_choice, tile_reference
from tilecache_daemon.freshness_policy import FreshnessAction, SectorClassification

CALL_TIMEOUT_S: Final = 30
RELABEL_TIMEOUT_S: Final = 3_600
PAGE_SIZE: Final = 1_000
EXIT_CODES: Final = (
    "Exit codes: 0 success; 1 not found, or the confirmation was declined; 2 wrong usage, or no "
    "terminal and no --yes; 3 the daemon does not answer; 4 refused by the daemon."
)

classification_choice = click.Choice([kind.value for kind in SectorClassification])
action_choice = click.Choice([action.value for action in FreshnessAction])


@click.group(epilog=EXIT_CODES)
def sectors_command() -> None:
    """List and change the sectors.

    A sector is an area with a classification, whose rule says when tiles expire. A
    tile is in a sector if the sector's box contains the tile's centre. If it is in
    several, the strictest classification applies. Tiles outside all sectors do not
    expire.
    """


@sectors_command.command("list")
@admin_socket_option
@json_option
def list_sectors_command(socket_path: Path, as_json: bool) -> None:
    """List the sectors, by name."""
    with connect(socket_path) as client:
        sectors = list(_sectors(client))
    if as_json:
        print_json([message_to_dict(sector, zeros=True) for sector in sectors])
    else:
        print_table(("name", "classification", "south,west,north,east"), map(_row, sectors))


@sectors_command.command("set")
@click.argument("name")
@click.option(
    "--class",
    "classification",
    type=classification_choice,
    required=True,
    help="The sector's classification.",
)
@box_option(required=True)
@admin_socket_option
def set_sector_command(
    name: str, classification: str, bbox: Sequence[float], socket_path: Path
) -> None:
    """Create or change the sector NAME.

    All tiles are relabelled before the command returns.

    \b
    tilecache sectors set front --class active_conflict --bbox 47,34,50,40
    tilecache sectors set fiji --class stable_rear --bbox -20,176,-15,-178
    """
    south, west, north, east = bbox
    sector = pb.Sector(
        name=name,
        classification=pb.SectorClassification.Value(
            f"SECTOR_CLASSIFICATION_{classification.upper()}"
        ),
        bounding_box=BoundingBox(south=south, west=west, north=north, east=east),
    )
    with connect(socket_path) as client:
        answer = client.admin.SetSector(
            pb.SetSectorRequest(sector=sector), timeout=RELABEL_TIMEOUT_S
        )
    click.echo(f"Set sector {answer.sector.name}. {_relabelled(answer.relabelled_count)}")


@sectors_command.command("delete")
@click.argument("name")
@removal_options
@admin_socket_option
def delete_sector_command(name: str, dry_run: bool, yes: bool, socket_path: Path) -> None:
    """Delete the sector NAME. Tiles are re-evaluated against the remaining sectors."""
    require_confirmation(yes=yes, dry_run=dry_run)
    with connect(socket_path) as client:
        sector = next((sector for sector in _sectors(client) if sector.name == name), None)
        if sector is None:
            fail(ExitCode.IN_PART, f"there is no sector {name!r}")
        description = " ".join(_row(sector))
        if dry_run:
            click.echo(f"Would delete sector {description}. Nothing was changed.")
            return
        if not yes:
            confirm(f"This deletes sector {description}. Continue?")
        answer = client.admin.DeleteSector(
            pb.DeleteSectorRequest(name=name), timeout=RELABEL_TIMEOUT_S
        )
    click.echo(f"Deleted sector {name}. {_relabelled(answer.relabelled_count)}")


@click.group(epilog=EXIT_CODES)
def rules_command() -> None:
    """List and change the freshness rules.

    The rule of a classification says at which age tiles expire, and what happens then.
    """


@rules_command.command("list")
@admin_socket_option
@json_option
def list_rules_command(socket_path: Path, as_json: bool) -> None:
    """List the rules, the strictest classification first."""
    with connect(socket_path) as client:
        rules = client.admin.ListFreshnessRules(
            pb.ListFreshnessRulesRequest(), timeout=CALL_TIMEOUT_S
        ).rules
    if as_json:
        print_json([message_to_dict(rule) for rule in rules])
    else:
        rows = (
            (
                _classification(rule.classification),
                format_count(rule.max_age_months, "month"),
                _action(rule),
            )
            for rule in rules
        )
        print_table(("classification", "max age", "action"), rows)


@rules_command.command("set")
@click.argument("classification", type=classification_choice)
@click.option("--max-age-months", type=int, required=True, help="Calendar months, 1 to 1200.")
@click.option("--action", type=action_choice, required=True, help="Applied to older tiles.")
@admin_socket_option
def set_rule_command(
    classification: str, max_age_months: int, action: str, socket_path: Path
) -> None:
    """Set the rule of CLASSIFICATION.

    All tiles are relabelled before the command returns. A rule is refused if a
    stricter classification would then keep tiles longer than a milder one.

    \b
    tilecache rules set active_conflict --max-age-months 3 --action reject
    """
    rule = pb.FreshnessRule(
        classification=pb.SectorClassification.Value(
            f"SECTOR_CLASSIFICATION_{classification.upper()}"
        ),
        max_age_months=_int32(max_age_months),
        action=pb.FreshnessAction.Value(f"FRESHNESS_ACTION_{action.upper()}"),
    )
    with connect(socket_path) as client:
        answer = client.admin.SetFreshnessRule(
            pb.SetFreshnessRuleRequest(rule=rule), timeout=RELABEL_TIMEOUT_S
        )
    click.echo(f"Set the rule of {classification}. {_relabelled(answer.relabelled_count)}")


@click.command("explain")
@click.argument("tile", nargs=-1, required=True, metavar="TILE_UUID | ZOOM X Y")
@click.option(
    "--source",
    type=source_choice,
    default=GOOGLEMAPS,
    show_default=True,
    help="The source of the tile.",
)
@click.option("--flight", metavar="UUID", help="The flight that produced the tile.")
@admin_socket_option
@json_option
def explain_command(
    tile: tuple[str, ...], source: str, flight: str | None, socket_path: Path, as_json: bool
) -> None:
    """Explain a tile's freshness label: its sector and rule, and when it changes next.

    \b
    tilecache explain 17f7ac7e-6c25-5050-a7cd-b6578cd5f323
    tilecache explain 18 154321 95812

    Exits with 1 if the tile does not exist.
    """
    request = pb.ExplainFreshnessRequest(tile=tile_reference(tile, source, flight))
    with connect(socket_path) as client:
        found = client.admin.ExplainFreshness(request, timeout=CALL_TIMEOUT_S)
    if as_json:
        print_json(message_to_dict(found, zeros=True))
        return
    click.echo(found.explanation)
    facts = Table.grid(padding=(0, 2))
    for name, fact in _facts(found):
        facts.add_row(Text(name, style="bold"), Text(fact))
    Console(highlight=False).print(facts)


def _sectors(client: TileCacheClient) -> Iterator[pb.Sector]:
    token = ""
    while True:
        answer = client.admin.ListSectors(
            pb.ListSectorsRequest(page_size=PAGE_SIZE, page_token=token), timeout=CALL_TIMEOUT_S
        )
        yield from answer.sectors
        token = answer.next_page_token
        if not token:
            return


def _row(sector: pb.Sector) -> tuple[str, str, str]:
    box = sector.bounding_box
    area = "no box, contains no tiles"
    if sector.HasField("bounding_box"):
        area = f"{box.south:g},{box.west:g},{box.north:g},{box.east:g}"
    return sector.name, _classification(sector.classification), area


def _classification(number: pb.SectorClassification.ValueType) -> str:
    return pb.SectorClassification.Name(number).removeprefix("SECTOR_CLASSIFICATION_").lower()


def _action(rule: pb.FreshnessRule) -> str:
    return pb.FreshnessAction.Name(rule.action).removeprefix("FRESHNESS_ACTION_").lower()


def _relabelled(count: int) -> str:
    return f"Relabelled {format_count(count, 'tile')}."


def _int32(number: int) -> int:
    if abs(number) >= 1 << 31:
        raise click.BadParameter(f"{number} is not within 1..1200", param_hint="--max-age-months")
    return number


def _facts(found: pb.ExplainFreshnessResponse) -> Iterator[tuple[str, str]]:
    yield "stored label", LABEL_TEXTS[found.stored_label]
    yield "current label", LABEL_TEXTS[found.current_label]
    yield "captured", f"{found.captured_at.ToDatetime():%Y-%m-%d %H:%M:%S}Z"
    months = format_count(found.age_months, "month")
    yield "age", f"{months} ({format_count(found.age.ToTimedelta().days, 'day')})"
    for index, sector in enumerate(found.sectors):
        yield "also in sector" if index else "decisive sector", " ".join(_row(sector))
    if found.HasField("rule"):
        rule = found.rule
        yield "rule", f"{_action(rule)} after {format_count(rule.max_age_months, 'month')}"
    if found.HasField("next_change_at"):
        when = f"{found.next_change_at.ToDatetime():%Y-%m-%d %H:%M:%S}Z"
        yield "next change", f"{when}, to {LABEL_TEXTS[found.next_label]}"
    yield "clock", "trusted" if found.clock_trusted else "NOT trusted"
