"""The conversation of a long command with its admin: lines, tables, a question, progress. Made by the command line.

On a terminal progress is a bar, elsewhere a line now and then. Whatever comes from the directory is shown as text,
never as instructions to the terminal.
"""

import sys
from collections.abc import Sequence
from enum import Enum

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vmkeep.console.conflicts import Conflict
from vmkeep.console.tables import printable, size_text
from vmkeep.contract.leaf import Leaf

_WIDTH_WITHOUT_TERMINAL = 240
_LINE_EVERY = 10  # percent


class Answer(Enum):
    """What a question brought."""

    YES = "yes"
    NO = "no"
    NOBODY = "nobody there"


class Terminal:
    """One command's input and output."""

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = ("", 0)

    def say(self, sentence: str) -> None:
        """One sentence, a line each."""
        for line in sentence.splitlines():
            self._console.print(Text(printable(line)), soft_wrap=True)

    def table(self, conflicts: Sequence[Conflict]) -> None:
        """What differs."""
        table = Table("what differs", "", "in the set", "live", box=None, pad_edge=False, header_style="bold")
        for one in conflicts:
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in _cells(one)))
        self._console.print(table)

    def ask(self, question: str) -> Answer:
        """Yes or no; NOBODY where there is no terminal. Anything but yes is no."""
        if not self.is_interactive:
            return Answer.NOBODY
        self.quiet()
        try:
            answer = input(f"{printable(question)} [y/N] ")
        except EOFError:
            return Answer.NO
        return Answer.YES if answer.strip().casefold() in ("y", "yes") else Answer.NO

    def progress(self, leaf: Leaf) -> None:
        """How far the step at hand is."""
        if self._console.is_terminal:
            self._show_bar(leaf)
        else:
            self._show_line(leaf)

    def quiet(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _show_bar(self, leaf: Leaf) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[bytes]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task("", total=None, bytes="")
            self._bar.start()
        assert self._task is not None
        total = None if leaf.percent is None or not leaf.is_at_work else 100
        self._bar.update(
            self._task,
            description=printable(leaf.raw_mode),
            total=total,
            completed=leaf.percent or 0,
            bytes=_bytes(leaf) if leaf.is_at_work else "",
        )

    def _show_line(self, leaf: Leaf) -> None:
        percent = (leaf.percent or 0) if leaf.is_at_work else 0
        mode, shown = self._last
        if leaf.raw_mode == mode and percent < shown + _LINE_EVERY:
            return
        self._last = (leaf.raw_mode, percent)
        far = f" {percent} %  {_bytes(leaf)}" if percent else ""
        self.say(f"{leaf.raw_mode}{far}".rstrip())


def _cells(conflict: Conflict) -> tuple[str, ...]:
    return conflict.kind, conflict.what, conflict.saved or "-", conflict.live or "-"


def _bytes(leaf: Leaf) -> str:
    if leaf.bytes_done is None or leaf.bytes_total is None:
        return ""
    return f"{size_text(leaf.bytes_done)} of {size_text(leaf.bytes_total)}"
