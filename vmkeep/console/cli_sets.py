"""The commands about backup roots: `sets`, `rebuild-catalogue`. Registered by `cli`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vmkeep.console import rebuild
from vmkeep.console.options import PROGRAM, AsJson, BackupRoot, OnlyMachine, SettingsFile, catalogue_of
from vmkeep.console.sets import Found, NoSet, find, set_json
from vmkeep.console.tables import printable, sets_lines, sets_table

SOME_REFUSED = 3

Rehearse = Annotated[bool, typer.Option("--dry-run", help="say what would be added, and add nothing")]


def sets_command(directory: BackupRoot, machine: OnlyMachine = None, as_json: AsJson = False) -> None:
    """List what lies in a backup root, from its manifests alone: needs neither the directory nor settings."""
    with PROGRAM.told():
        found = find(directory, machine)
        _print_json(directory, found) if as_json else _print_table(found)


def rebuild_command(
    context: typer.Context,
    directory: BackupRoot,
    machine: OnlyMachine = None,
    dry_run: Rehearse = False,
    settings_file: SettingsFile = None,
) -> None:
    """Write back to the directory what it lacks of the sets in a backup root: machines' entries, ou=backup, leaves.

    Never changes what is there. Exit 0: all there now, 1: not possible, 2: usage, 3: some machines were refused.
    """
    with catalogue_of(context, settings_file) as catalogue:
        found = find(directory, machine)
        _say_no_sets(found.no_sets)
        told = []
        for one in rebuild.rebuild(catalogue, found.sets, rehearse=dry_run):
            told.append(one)
            if one.sentence:
                typer.echo(printable(one.sentence), err=one.kind is rebuild.Kind.REFUSED)
        typer.echo(rebuild.summary(told, found.sets, rehearse=dry_run))
        raise typer.Exit(SOME_REFUSED if any(one.kind is rebuild.Kind.REFUSED for one in told) else 0)


def _print_json(root: Path, found: Found) -> None:
    no_sets = [{"directory": str(one.directory), "reason": one.reason} for one in found.no_sets]
    shown = {"root": str(root.absolute()), "sets": [set_json(one) for one in found.sets], "no_sets": no_sets}
    typer.echo(json.dumps(shown, indent=2))


def _print_table(found: Found) -> None:
    if sys.stdout.isatty():
        Console().print(sets_table(found.sets))
    else:
        typer.echo("\n".join(sets_lines(found.sets)))
    machines = len({one.manifest.machine for one in found.sets})
    typer.echo(f"{len(found.sets)} sets of {machines} machines")
    _say_no_sets(found.no_sets)


def _say_no_sets(no_sets: Sequence[NoSet]) -> None:
    for one in no_sets:
        typer.echo(printable(f"no set: {one.directory} {one.reason}"), err=True)
