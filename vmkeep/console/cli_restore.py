"""The commands that change something: `restore`, `abort`, `delete`. Registered by `cli`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from vmkeep.console import another_name, backing_out, deleting
from vmkeep.console.another_name import NewMachine
from vmkeep.console.options import A_DAY, Machine, Seconds, SettingsFile, Yes, catalogue_of, unknown
from vmkeep.console.restore import Asked, restore
from vmkeep.console.restoring import LATEST, choose, choose_good
from vmkeep.console.terminal import Terminal
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.machine import check_name, check_target
from vmkeep.directory.catalogue import Catalogue

At = Annotated[
    str, typer.Option("--at", metavar="TIMESTAMP", help="the backup, such as 20260131T235959Z; default latest")
]
Diff = Annotated[bool, typer.Option("--diff", help="show what differs between the set and the machine, and back out")]
WithoutState = Annotated[bool, typer.Option("--without-state", help="start the machine anew instead of its memory")]
Disks = Annotated[
    list[str] | None,
    typer.Option("--disk", metavar="TARGET", help="this disk alone, such as vda (again for more); the machine is off"),
]
KeepOld = Annotated[bool, typer.Option("--keep-old", help="keep what is replaced until vmkeepKeepOld is taken away")]
As = Annotated[
    str | None, typer.Option("--as", metavar="NEWNAME", help="make a new machine beside the old one, with own images")
]
KeepMac = Annotated[bool, typer.Option("--keep-mac", help="with --as: the old machine's network addresses")]
Isolated = Annotated[bool, typer.Option("--isolated", help="with --as: without any connection to a network")]
Last = Annotated[bool, typer.Option("--last", help="even if it is the last good backup")]
Timestamp = Annotated[str, typer.Argument(help="the backup, such as 20260131T235959Z")]


def restore_command(
    context: typer.Context,
    machine: Machine,
    at: At = LATEST,
    yes: Yes = False,
    diff: Diff = False,
    without_state: WithoutState = False,
    disk: Disks = None,
    keep_old: KeepOld = False,
    new_name: As = None,
    keep_mac: KeepMac = False,
    isolated: Isolated = False,
    timeout: Seconds = A_DAY,
    settings_file: SettingsFile = None,
) -> None:
    """Put a machine back as it was, or go on with a restore that waits. Shows what differs, asks, follows to the end.

    Exit 0: restored, 1: failed, 2: usage, 3: ended before the machine was touched.
    """
    with catalogue_of(context, settings_file) as catalogue:
        disks = tuple(check_target(machine, target) for target in disk or ())
        wishes = Wishes(disks=disks, keep_old=keep_old, without_state=without_state or None)
        new = _new_machine(new_name, keep_mac, isolated, wishes)
        leaf, is_begun = _chosen(catalogue, check_name(machine), at, new)
        raise typer.Exit(restore(catalogue, leaf, Asked(wishes, yes, diff, timeout, is_begun), Terminal()))


def abort_command(context: typer.Context, machine: Machine, settings_file: SettingsFile = None) -> None:
    """Back out of a machine's restore: its leaf is the good backup it was. Refused while an agent is at work."""
    with catalogue_of(context, settings_file) as catalogue:
        _must_exist(catalogue, check_name(machine))
        Terminal().say(backing_out.abort(catalogue, machine))


def delete_command(
    context: typer.Context,
    machine: Machine,
    timestamp: Timestamp,
    yes: Yes = False,
    last: Last = False,
    timeout: Seconds = A_DAY,
    settings_file: SettingsFile = None,
) -> None:
    """Remove one backup, files and all. Exit 0: deleted, 1: failed or refused, 2: usage, 3: nothing was asked for."""
    with catalogue_of(context, settings_file) as catalogue:
        _must_exist(catalogue, check_name(machine))
        terminal = Terminal()
        now = datetime.now(UTC)
        leaf = deleting.may_delete(machine, list(catalogue.leaves(machine)), timestamp, now, last=last)
        if not yes and not deleting.confirmed(leaf, terminal):
            raise typer.Exit(deleting.UNTOUCHED)
        raise typer.Exit(deleting.delete(catalogue, leaf, terminal, timeout, last=last))


def _chosen(catalogue: Catalogue, machine: str, at: str, new: NewMachine | None) -> tuple[Leaf, bool]:
    if catalogue.machine_entry(machine) is None:
        why = unknown(catalogue, machine)
        raise Refused(why.code, f"{why.sentence}; if its sets are there: `vmkeep rebuild-catalogue DIRECTORY`")
    leaves = list(catalogue.leaves(machine))
    if new is None:
        return choose(machine, leaves, at), False
    return another_name.begin(catalogue, choose_good(machine, leaves, at), new)


def _new_machine(name: str | None, keep_mac: bool, isolated: bool, wishes: Wishes) -> NewMachine | None:
    if name is None and (keep_mac or isolated):
        raise _usage("--keep-mac and --isolated belong to --as NEWNAME")
    if name is not None and wishes.disks:
        raise _usage("--disk brings disks back into their own machine; with --as the whole machine is made")
    if name is not None and wishes.keep_old:
        raise _usage("--keep-old keeps what is replaced; with --as nothing is")
    return None if name is None else NewMachine(check_name(name), keep_mac, isolated)


def _usage(sentence: str) -> typer.BadParameter:
    return typer.BadParameter(sentence)


def _must_exist(catalogue: Catalogue, machine: str) -> None:
    if catalogue.machine_entry(machine) is None:
        raise unknown(catalogue, machine)
