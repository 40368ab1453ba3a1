"""`tilecache sectors`, `rules` and `explain`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilecache.client import TileCacheClient
from tilecache.identity import GOOGLEMAPS
from tilecache.v1 import tile_cache_admin_pb2 as pb
from tilecache.v1.tile_metadata_store_pb2 import BoundingBox, Region
from tilecache_daemon.cli.output import (
    ExitCode,
    admin_socket_option,
    connect,
    fail,
    json_option,
    message_to_dict,
    print_json,
    print_json_line,
    print_table,
)
from tilecache_daemon.cli.regions import (
    area_option,
    box_option,
    describe_region,
    single_polygon,
)
from tilecache_daemon.cli.removal import (
    confirm,
    policy_options,
    removal_options,
    require_confirmation,
)
from tilecache_daemon.cli.sizes import format_count
from tilecache_daemon.cli.tiles import LABEL_TEXTS, source_choice, tile_reference
from tilecache_daemon.flightplans.shapes import AreaShape
from tilecache_daemon.freshness_policy import FreshnessAction, SectorClassification
from tilecache_daemon.paging import read_pages

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
    tile is in a sector if the sector's box or polygon contains the tile's centre. If it is in
    several, the strictest classification applies. Tiles outside all sectors do not
    expire.
    """


@sectors_command.command("list")
@admin_socket_option
@json_option
def list_sectors_command(socket_path: Path, as_json: bool) -> None:
    """List the sectors, by name."""
    with connect(socket_path) as client:
        sectors = list(read_sectors(client))
    if as_json:
        print_json([message_to_dict(sector, zeros=True) for sector in sectors])
    else:
        print_table(("name", "classification", "area"), map(_row, sectors))


@sectors_command.command("set")
@click.argument("name")
@click.option(
    "--class",
    "classification",
    type=classification_choice,
    required=True,
    help="The sector's classification.",
)
@box_option(required=False)
@area_option
@policy_options
@admin_socket_option
@json_option
def set_sector_command(
    name: str,
    classification: str,
    bbox: Sequence[float] | None,
    area: list[AreaShape] | None,
    dry_run: bool,
    yes: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Create or change the sector NAME, a box or a polygon.

    On a terminal, shows how many tiles would be relabelled and asks. All tiles are
    relabelled before the command returns.

    \b
    tilecache sectors set front --class active_conflict --bbox 47,34,50,40
    tilecache sectors set fiji --class stable_rear --bbox -20,176,-15,-178
    tilecache sectors set city --class active_conflict --area city.geojson --dry-run
    """
    if (bbox is None) == (area is None):
        raise click.UsageError("Give exactly one of --bbox and --area.")
    sector = pb.Sector(
        name=name,
        classification=pb.SectorClassification.Value(
            f"SECTOR_CLASSIFICATION_{classification.upper()}"
        ),
    )
    if bbox is not None:
        south, west, north, east = bbox
        sector.bounding_box.CopyFrom(BoundingBox(south=south, west=west, north=north, east=east))
    if area is not None:
        sector.polygon.CopyFrom(single_polygon(area))
    with connect(socket_path) as client:

        def set_it(*, dry_run: bool) -> pb.SetSectorResponse:
            answer: pb.SetSectorResponse = client.admin.SetSector(
                pb.SetSectorRequest(sector=sector, dry_run=dry_run), timeout=RELABEL_TIMEOUT_S
            )
            return answer

        _apply(f"sector {name}", set_it, dry_run=dry_run, yes=yes, as_json=as_json)


@sectors_command.command("delete")
@click.argument("name")
@removal_options
@admin_socket_option
def delete_sector_command(name: str, dry_run: bool, yes: bool, socket_path: Path) -> None:
    """Delete the sector NAME. Tiles are re-evaluated against the remaining sectors."""
    require_confirmation(yes=yes, dry_run=dry_run)
    with connect(socket_path) as client:
        sector = next((sector for sector in read_sectors(client) if sector.name == name), None)
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
@policy_options
@admin_socket_option
@json_option
def set_rule_command(
    classification: str,
    max_age_months: int,
    action: str,
    dry_run: bool,
    yes: bool,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Set the rule of CLASSIFICATION.

    On a terminal, shows how many tiles would be relabelled and asks. All tiles are
    relabelled before the command returns. A rule is refused if a stricter
    classification would then keep tiles longer than a milder one.

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

        def set_it(*, dry_run: bool) -> pb.SetFreshnessRuleResponse:
            answer: pb.SetFreshnessRuleResponse = client.admin.SetFreshnessRule(
                pb.SetFreshnessRuleRequest(rule=rule, dry_run=dry_run), timeout=RELABEL_TIMEOUT_S
            )
            return answer

        _apply(f"the rule of {classification}", set_it, dry_run=dry_run, yes=yes, as_json=as_json)


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


class _Set(Protocol):
    """Sets a sector or a rule, or says what that would do."""

    def __call__(self, *, dry_run: bool) -> pb.SetSectorResponse | pb.SetFreshnessRuleResponse: ...


def _apply(what: str, set_it: _Set, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Shows what would be relabelled where that is asked for, or before it asks on a terminal."""
    asks = not (yes or dry_run) and sys.stdin.isatty()
    tried = set_it(dry_run=True) if dry_run or asks else None
    if tried is not None and not as_json:
        for line in _relabellings(tried):
            click.echo(line, err=asks)
    if asks and tried is not None and tried.relabelled_count:
        count = format_count(tried.relabelled_count, "tile")
        confirm(f"This relabels {count}. Continue?")
    done = tried if dry_run else set_it(dry_run=False)
    assert done is not None
    if as_json:
        for each in done.relabelled:
            print_json_line(
                {
                    "kind": "relabelled",
                    "old_label": LABEL_TEXTS[each.old_label],
                    "new_label": LABEL_TEXTS[each.new_label],
                    "tile_count": each.tile_count,
                    "recently_used_count": each.recently_used_count,
                }
            )
        summary = {"relabelled_count": done.relabelled_count, "dry_run": dry_run}
        print_json_line({"kind": "summary", **summary})
    elif dry_run:
        count = format_count(done.relabelled_count, "tile")
        click.echo(f"Would set {what} and relabel {count}. Nothing was changed.")
    else:
        click.echo(f"Set {what}. {_relabelled(done.relabelled_count)}")


def _relabellings(tried: pb.SetSectorResponse | pb.SetFreshnessRuleResponse) -> Iterator[str]:
    for each in tried.relabelled:
        yield (
            f"{LABEL_TEXTS[each.old_label]} to {LABEL_TEXTS[each.new_label]}: "
            f"{format_count(each.tile_count, 'tile')}, {each.recently_used_count:,} of them used "
            "within the last seven days"
        )


def read_sectors(client: TileCacheClient) -> Iterator[pb.Sector]:
    """All sectors, by name."""
    request = pb.ListSectorsRequest(page_size=PAGE_SIZE)
    for page in read_pages(client.admin.ListSectors, request, CALL_TIMEOUT_S):
        yield from page.sectors


def _row(sector: pb.Sector) -> tuple[str, str, str]:
    box = sector.bounding_box
    area = "no box, contains no tiles"
    if sector.HasField("polygon"):
        area = describe_region(Region(polygon=sector.polygon))
        return sector.name, _classification(sector.classification), area
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
