"""The commands about which backups stay: `hold`, `release`, `prune`. Registered by `cli`."""

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console

from vmkeep.console import holding, pruned
from vmkeep.console.deleting import leaf_named
from vmkeep.console.moments import moment_of
from vmkeep.console.options import PROGRAM, AsJson, Machine, SettingsFile, catalogue_of, unknown
from vmkeep.console.tables import printable
from vmkeep.console.terminal import Terminal
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import check_name
from vmkeep.contract.pruning import to_ask
from vmkeep.contract.retention import Policy, read_policy
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import Claim
from vmkeep.directory.pruning import ask, judge_machine, read_surveyed, restored_elsewhere
from vmkeep.directory.survey import Surveyed, survey
from vmkeep.service.command import opened

SOME_REFUSED = 3

Timestamp = Annotated[str, typer.Argument(help="the backup, such as 20260131T235959Z")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="why it stays; for who reads it in a year")]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="DATE", help="such as 2027-01-31 in the cluster's zone; default until released"),
]
Machines = Annotated[list[str] | None, typer.Argument(metavar="[MACHINE]...", help="these machines; default all")]
Keep = Annotated[
    str | None, typer.Option("--keep", metavar="POLICY", help="with --dry-run: as if every plan said this (vmkeepKeep)")
]
Rehearse = Annotated[bool, typer.Option("--dry-run", help="say what would go and why the others stay; ask for nothing")]


def hold_command(
    context: typer.Context,
    machine: Machine,
    timestamp: Timestamp,
    reason: Reason,
    until: Until = None,
    settings_file: SettingsFile = None,
) -> None:
    """Have one backup stay, whatever the plan says, until a date or until it is released."""
    with PROGRAM.told():
        chosen = PROGRAM.settings(context, settings_file)
        try:
            end = moment_of("--until", until, ZoneInfo(chosen.timezone)) if until else None
            wanted = holding.hold_for(reason, end, datetime.now(UTC))
        except ValueError as why:
            raise typer.BadParameter(str(why)) from None
        with opened(chosen.directory) as catalogue:
            Terminal().say(holding.hold(catalogue, _leaf(catalogue, machine, timestamp), wanted))


def release_command(
    context: typer.Context, machine: Machine, timestamp: Timestamp, settings_file: SettingsFile = None
) -> None:
    """Take a hold back: the backup goes when the plan keeps it no longer."""
    with catalogue_of(context, settings_file) as catalogue:
        Terminal().say(holding.release(catalogue, _leaf(catalogue, machine, timestamp)))


def prune_command(
    context: typer.Context,
    machines: Machines = None,
    dry_run: Rehearse = False,
    keep: Keep = None,
    as_json: AsJson = False,
    settings_file: SettingsFile = None,
) -> None:
    """Ask for the deletion of what the plans keep no longer, as the controller does by itself; say why the rest stays.

    Exit 0: all machines were looked at, 1: not possible, 2: usage, 3: some machines were refused.
    """
    with PROGRAM.told():
        policy = _policy(keep, dry_run=dry_run)
        chosen = PROGRAM.settings(context, settings_file)
        with opened(chosen.directory) as catalogue:
            found = _judged(catalogue, machines, ZoneInfo(chosen.timezone), policy)
            refused = [machine.trouble for machine in found if machine.trouble]
            asked = None if dry_run else _asked(catalogue, found, refused)
            _print(found, asked, as_json)
        for sentence in refused:
            typer.echo(printable(sentence), err=True)
        raise typer.Exit(SOME_REFUSED if refused else 0)


def _leaf(catalogue: Catalogue, machine: str, timestamp: str) -> Leaf:
    if catalogue.machine_entry(check_name(machine)) is None:
        raise unknown(catalogue, machine)
    return leaf_named(machine, list(catalogue.leaves(machine)), timestamp)


def _policy(text: str | None, *, dry_run: bool) -> Policy | None:
    if text is None:
        return None
    if not dry_run:
        raise typer.BadParameter("--keep tries a policy, and needs --dry-run; what goes is for the plans to say")
    try:
        return read_policy(text)
    except ValueError as why:
        raise typer.BadParameter(f"--keep {text}: {why}") from None


def _judged(
    catalogue: Catalogue, names: Sequence[str] | None, zone: ZoneInfo, policy: Policy | None
) -> list[pruned.Machine]:
    surveyed = sorted(_surveyed(catalogue, names), key=lambda one: one.machine.name)
    elsewhere, now = restored_elsewhere(catalogue), datetime.now(UTC)
    found = []
    for one in surveyed:
        try:
            judged = judge_machine(catalogue, one, elsewhere, now, zone, policy)
            found.append(pruned.Machine(one.machine.name, judged))
        except Refused as why:
            found.append(pruned.Machine(one.machine.name, trouble=why.sentence))
    return found


def _surveyed(catalogue: Catalogue, names: Sequence[str] | None) -> Iterator[Surveyed]:
    if not names:
        yield from survey(catalogue)
        return
    for name in dict.fromkeys(names):
        one = read_surveyed(catalogue, check_name(name))
        if one is None:
            raise unknown(catalogue, name)
        yield one


def _asked(catalogue: Catalogue, found: Sequence[pruned.Machine], refused: list[str]) -> int:
    """How many deletions were asked for; what the directory refuses is added to `refused`."""
    number = 0
    for machine in found:
        try:
            for one in to_ask(machine.judged):
                number += ask(catalogue, one) is Claim.WON
        except Refused as why:
            refused.append(f"{machine.name}: {why.sentence}")
    return number


def _print(found: Sequence[pruned.Machine], asked: int | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(pruned.to_json(found), indent=2))
        return
    if sys.stdout.isatty():
        Console().print(pruned.table(found))
    else:
        typer.echo("\n".join(pruned.lines(found)))
    typer.echo(pruned.summary(found, asked))
