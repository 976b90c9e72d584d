"""An agent that waits at lines of its journals that a test names, until the test lets it go.

Run as `python -m tests.faults.held_agent FOLDER ARGUMENT…`, the arguments being vmkeep-nodeagent's. A file in FOLDER
named by machine and mode holds patterns of lines such as `ended save`; `.reached` beside it says that its work waits
after that line, and does so for as long as the file is there, ten minutes at most. The file `clock` says by how many
seconds its clock errs.
"""

import functools
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nodeagent import assembly
from nodeagent.cli import main
from nodeagent.journal import Journal
from nodeagent.steps import Host

_LONGEST = 600.0  # seconds; whoever holds it may be gone
_append = Journal._append


def place_of(folder: Path, machine: str, mode: str) -> Path:
    """The file that holds one machine's work in a mode."""
    return folder / f"{machine}@{mode}"


def reached(place: Path) -> Path:
    """The file that says it is held."""
    return place.with_name(f"{place.name}.reached")


def hold_at_lines_named_in(folder: Path) -> None:
    """Replace the journal's only write by one that waits afterwards."""

    def held(self: Journal, line: dict[str, Any], *, must: bool) -> None:
        _append(self, line, must=must)
        place = place_of(folder, self.order.machine, self.order.mode)
        if _names(place, f"{line['event']} {line.get('step', '')}"):
            reached(place).touch()
            deadline = time.monotonic() + _LONGEST
            while place.exists() and time.monotonic() < deadline:
                time.sleep(0.01)

    Journal._append = held  # type: ignore[method-assign]


def _names(place: Path, line: str) -> bool:
    try:
        return any(fnmatchcase(line, pattern) for pattern in place.read_text().splitlines())
    except FileNotFoundError:
        return False


def clock_of(folder: Path) -> Path:
    """The file that shifts its clock."""
    return folder / "clock"


def err_by_what_is_told_in(folder: Path) -> None:
    """Give the agent another clock: it takes one as an argument."""

    def clock() -> float:
        try:
            return time.time() + float(clock_of(folder).read_text() or 0)
        except FileNotFoundError:
            return time.time()

    assembly.Host = functools.partial(Host, wall_clock=clock)  # type: ignore[assignment, misc]


if __name__ == "__main__":
    told_in = Path(sys.argv.pop(1))
    hold_at_lines_named_in(told_in)
    err_by_what_is_told_in(told_in)
    main()
