"""The command `controllers`: which of several controllers acts. Registered by `cli`."""

import json
from datetime import UTC, datetime

import typer

from vmkeep.console.options import AsJson, SettingsFile, catalogue_of
from vmkeep.directory.lease import LeaseEntry, read_lease

NOBODY_ACTS = 3


def controllers_command(context: typer.Context, as_json: AsJson = False, settings_file: SettingsFile = None) -> None:
    """Show which controller acts, since when, and when it last said so. Exit 0, or 3 when none seems to."""
    with catalogue_of(context, settings_file) as catalogue:
        now = datetime.now(UTC)
        entry = read_lease(catalogue.store, catalogue.tree)
        if as_json:
            typer.echo(json.dumps(_to_json(entry or LeaseEntry(), now), indent=2))
        else:
            typer.echo(entry.sentence(now) if entry else f"no controller has served yet: no {catalogue.tree.lease}")
        raise typer.Exit(0 if entry and entry.seems_held(now) else NOBODY_ACTS)


def _to_json(entry: LeaseEntry, now: datetime) -> dict[str, object]:
    age = (now - entry.changed).total_seconds() if entry.changed else None
    shown = {"holder": entry.holder or None, "epoch": entry.epoch, "since": entry.since or None}
    return {**shown, "renewed_seconds_ago": age, "holds_seconds": entry.seconds, "acts": entry.seems_held(now)}
