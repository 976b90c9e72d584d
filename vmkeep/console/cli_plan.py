"""The command `plan`: a machine's effective plan, and what would be started when. Registered by `cli`."""

import json
import sys
from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console

from vmkeep.console import outlook
from vmkeep.console.effective import settings_of
from vmkeep.console.moments import moment_of
from vmkeep.console.options import PROGRAM, AsJson, SettingsFile, unknown
from vmkeep.console.outlook import Outlook, Window
from vmkeep.console.tables import plan_table, printable
from vmkeep.contract.machine import Power, check_name
from vmkeep.contract.methods import ways
from vmkeep.contract.plan import Plan, is_excluded, resolve
from vmkeep.contract.timetable import timetable
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.survey import Surveyed, survey, survey_one
from vmkeep.service.command import opened

_WIDTH_WITHOUT_TERMINAL = 240

Machine = Annotated[str | None, typer.Argument(help="one machine, with all its values; default: when each starts")]
At = Annotated[
    str | None,
    typer.Option(
        "--at", metavar="TIME", help="as if it were then: 2026-12-31T03:00 in the cluster's zone; default now"
    ),
]
Days = Annotated[int, typer.Option("--days", min=0, max=366, metavar="N", help="how many days to look ahead")]


def plan_command(
    context: typer.Context,
    machine: Machine = None,
    at: At = None,
    days: Days = 1,
    as_json: AsJson = False,
    settings_file: SettingsFile = None,
) -> None:
    """Show what would be started when and why a machine would not; of one machine its effective plan too."""
    with PROGRAM.told():
        chosen = PROGRAM.settings(context, settings_file)
        zone = ZoneInfo(chosen.timezone)
        window = Window(moment_of("--at", at, zone) if at else datetime.now(UTC), days, zone)
        with opened(chosen.directory) as catalogue:
            _show_one(catalogue, machine, window, as_json) if machine else _show_all(catalogue, window, as_json)


def _show_all(catalogue: Catalogue, window: Window, as_json: bool) -> None:
    surveyed = list(survey(catalogue))
    found = _outlook(catalogue, surveyed, window)
    if as_json:
        typer.echo(json.dumps(outlook.to_json(found), indent=2))
        return
    _print_lines(found)
    typer.echo(f"{len(surveyed)} machines; {window.days} days from {window.local(window.at)}, zone {window.zone.key}")


def _show_one(catalogue: Catalogue, machine: str, window: Window, as_json: bool) -> None:
    surveyed = survey_one(catalogue, check_name(machine))
    if surveyed is None:
        raise unknown(catalogue, machine)
    excluded = is_excluded(machine, surveyed.sources)
    plan = resolve(machine, surveyed.sources)
    found = _outlook(catalogue, [surveyed], window)
    if as_json:
        shown = {one.attribute: {"value": one.value, "from": one.origin} for one in settings_of(plan)}
        more = {"machine": machine, "left_out": excluded, "plan": shown, "schedule": outlook.to_json(found)}
        typer.echo(json.dumps(more, indent=2))
        return
    if excluded:
        typer.echo(f"{machine} is left out of every run (sstBackupExcludeFromBackup is TRUE); its plan would be:")
    _print_plan(plan)
    typer.echo(f"by schedule, for {window.days} days from {window.local(window.at)}, zone {window.zone.key}:")
    _print_lines(found)


def _outlook(catalogue: Catalogue, surveyed: list[Surveyed], window: Window) -> Outlook:
    one = surveyed[0].machine.name if len(surveyed) == 1 else None
    tables = [timetable(each.machine, each.sources) for each in surveyed]
    return outlook.outlook(tables, catalogue.standing_leaves(one), window)


def _print_plan(plan: Plan) -> None:
    # A pipe has no width; a table folded to 80 columns would be of no use to grep.
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    Console(width=width).print(plan_table(settings_of(plan)))
    typer.echo("while it runs, its disks are, by where images and backup directory lie:")
    for place, way in ways(plan.method, Power.RUNNING).items():
        typer.echo(f"  {place}: {way}")


def _print_lines(found: Outlook) -> None:
    for line in outlook.lines(found):
        typer.echo(printable(line))
