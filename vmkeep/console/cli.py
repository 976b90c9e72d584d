"""The command line `vmkeep`: parse, call, print."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console

from vmkeep.console.cli_controllers import controllers_command
from vmkeep.console.cli_plan import plan_command
from vmkeep.console.cli_prune import hold_command, prune_command, release_command
from vmkeep.console.cli_restore import abort_command, delete_command, restore_command
from vmkeep.console.cli_sets import rebuild_command, sets_command
from vmkeep.console.options import PROGRAM, AsJson, SettingsFile, catalogue_of, unknown
from vmkeep.console.reading import Reading, read_all, read_one
from vmkeep.console.status import Standing, Status, statuses, to_json
from vmkeep.console.tables import not_covered, status_lines, status_table, summary
from vmkeep.contract.machine import check_name
from vmkeep.directory.catalogue import Catalogue

SOME_FAILED = 3

app = typer.Typer(
    help="Shows how the backups of the cluster's machines stand, and restores machines from them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(context: typer.Context, settings_file: SettingsFile = None) -> None:
    """Options before the command."""
    context.obj = settings_file


@app.command()
def status(
    context: typer.Context,
    machine: Annotated[str | None, typer.Argument(help="one machine; default all")] = None,
    as_json: AsJson = False,
    settings_file: SettingsFile = None,
) -> None:
    """Show last success, age, size, downtime, what runs, what failed. Exit 3: one failed, or lacks what is promised."""
    with catalogue_of(context, settings_file) as catalogue:
        zone = ZoneInfo(PROGRAM.settings(context, settings_file).timezone)
        reading = read_all(catalogue) if machine is None else _one(catalogue, machine)
        found = statuses(reading.machines, reading.leaves, datetime.now(UTC), zone)
        _print_json(found) if as_json else _print_table(found)
        raise typer.Exit(SOME_FAILED if any(map(_is_alarming, found)) else 0)


app.command("plan")(plan_command)
app.command("controllers")(controllers_command)
app.command("restore")(restore_command)
app.command("abort")(abort_command)
app.command("delete")(delete_command)
app.command("hold")(hold_command)
app.command("release")(release_command)
app.command("prune")(prune_command)
app.command("sets")(sets_command)
app.command("rebuild-catalogue")(rebuild_command)


def main() -> None:
    """Entry point of the script."""
    app(prog_name=PROGRAM.name)


def _one(catalogue: Catalogue, machine: str) -> Reading:
    reading = read_one(catalogue, check_name(machine))
    if reading is None:
        raise unknown(catalogue, machine)
    return reading


def _is_alarming(status: Status) -> bool:
    return status.standing is Standing.FAILED or bool(status.broken_promise)


def _print_json(found: Sequence[Status]) -> None:
    print(json.dumps({"machines": [to_json(one) for one in found]}, indent=2))


def _print_table(found: Sequence[Status]) -> None:
    if sys.stdout.isatty():
        Console().print(status_table(found))
    else:
        print("\n".join(status_lines(found)))
    print(summary(found))
    if told := not_covered(found):
        print(told)
