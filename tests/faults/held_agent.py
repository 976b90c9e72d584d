"""An agent that waits at lines of its journals that a test names, until the test lets it go.

Run as `python -m tests.faults.held_agent FOLDER ARGUMENT…`, the arguments being vmkeep-nodeagent's. A file in FOLDER
named by machine and mode holds patterns of lines such as `ended save`; `.reached` beside it says that its work waits after that
line, and does so for as long as the file is there.
"""

import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nodeagent.cli import main
from nodeagent.journal import Journal

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
            while place.exists():
                time.sleep(0.01)

    Journal._append = held  # type: ignore[method-assign]


def _names(place: Path, line: str) -> bool:
    try:
        return any(fnmatchcase(line, pattern) for pattern in place.read_text().splitlines())
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    hold_at_lines_named_in(Path(sys.argv.pop(1)))
    main()
