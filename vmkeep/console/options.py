"""What the command modules of `vmkeep` share: the program, options that several commands take, an unknown machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.catalogue import Catalogue
from vmkeep.service.command import Program, opened
from vmkeep.service.settings import CONSOLE_FILE, ConsoleSettings

PROGRAM = Program("vmkeep", ConsoleSettings, CONSOLE_FILE)

SettingsFile: TypeAlias = Annotated[Path | None, PROGRAM.settings_option()]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="for programs; the shape is in the reference")]
Machine: TypeAlias = Annotated[str, typer.Argument(help="the machine")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="do not ask")]
BackupRoot: TypeAlias = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="a backup root, as seen from here")]
OnlyMachine: TypeAlias = Annotated[str | None, typer.Option("--machine", metavar="MACHINE", help="this machine alone")]
Seconds: TypeAlias = Annotated[
    float, typer.Option("--timeout", min=0, metavar="SECONDS", help="stop following after this long; default a day")
]
A_DAY = 86400.0


@contextmanager
def catalogue_of(context: typer.Context, settings_file: Path | None) -> Iterator[Catalogue]:
    """The directory of the settings; errors are told in one sentence, with an exit code."""
    with PROGRAM.told(), opened(PROGRAM.settings(context, settings_file).directory) as catalogue:
        yield catalogue


def unknown(catalogue: Catalogue, machine: str) -> Refused:
    """The directory has no machine of this name."""
    return Refused(
        ReturnValue.CANNOT_FIND_MACHINE, f"{machine}: there is no machine of this name below {catalogue.tree.machines}"
    )
