"""What the command lines share: where the settings come from, errors told in one sentence, the directory opened.

Called by the `cli` modules of the three programs; each makes one `Program`.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import typer
from typer.models import OptionInfo

from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Tree
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.settings import DirectorySettings
from vmkeep.service.loop import TooManyBugs
from vmkeep.service.settings import Model, SettingsError, load

ERROR = 1
USAGE = 2
INTERRUPTED = 128  # plus the signal's number, as shells have it


@dataclass(frozen=True)
class Program(Generic[Model]):
    """One program by its name, the model of its settings and their file; `interrupted` is said at Ctrl-C."""

    name: str
    model: type[Model]
    settings_file: Path
    interrupted: str = "interrupted"

    def settings_option(self) -> OptionInfo:
        """The option --settings, for before and after the command."""
        option: OptionInfo = typer.Option("--settings", metavar="FILE", help=f"settings; default {self.settings_file}")
        return option

    def settings(self, context: typer.Context, after_command: Path | None) -> Model:
        """What the file says that was named after the command, before it, or not at all."""
        before_command: Path | None = context.obj
        return load(self.model, after_command or before_command or self.settings_file)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors in one sentence on stderr, with an exit code; no traceback."""
        try:
            yield
        except SettingsError as why:
            self.say_error(why.sentence)
            raise typer.Exit(USAGE) from None
        except (Refused, TryLater, TooManyBugs) as why:
            self.say_error(str(why))
            raise typer.Exit(ERROR) from None
        except KeyboardInterrupt:
            self.say_error(self.interrupted)
            raise typer.Exit(INTERRUPTED + signal.SIGINT) from None

    def say_error(self, sentence: str) -> None:
        """Write to stderr, each line with the program's name before it."""
        for one in sentence.splitlines():
            typer.echo(f"{self.name}: {one}", err=True)


@contextmanager
def opened(directory: DirectorySettings) -> Iterator[Catalogue]:
    """The directory's catalogue, connected at the first call and closed at the end."""
    store = open_store(directory)
    try:
        yield Catalogue(store, Tree(directory.suffix))
    finally:
        store.close()
