"""What `vmkeep prune` shows of each leaf: stays or goes, and why. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from vmkeep.console.tables import printable
from vmkeep.contract.pruning import Judged, hold_of
from vmkeep.contract.retention import hold_text

_HEAD = ("machine", "timestamp", "", "why")


@dataclass(frozen=True)
class Machine:
    """One machine: its leaves as judged, or in `trouble` why its plan says not what to keep."""

    name: str
    judged: tuple[Judged, ...] = ()
    trouble: str = ""


def lines(machines: Sequence[Machine]) -> list[str]:
    """A line a leaf, for a pipe or a file."""
    rows = [_HEAD, *_rows(machines)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    cells = ([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]


def table(machines: Sequence[Machine]) -> Table:
    """The same for a terminal."""
    shown = Table(*_HEAD[:-1], box=None, pad_edge=False, header_style="bold")
    shown.add_column(_HEAD[-1], overflow="fold")
    for row in _rows(machines):
        style = "yellow" if row[2] == "goes" else ""
        shown.add_row(*(Text(cell, style=style) for cell in row))
    return shown


def summary(machines: Sequence[Machine], asked: int | None = None) -> str:
    """The last line; `asked`: how many deletions were asked for, None where none was to be."""
    leaves = [one for machine in machines for one in machine.judged]
    going = sum(one.goes for one in leaves)
    told = f"{going} of {len(leaves)} backups of {len(machines)} machines "
    told += "would go" if asked is None else f"go; {asked} deletions were asked for"
    troubled = sum(bool(machine.trouble) for machine in machines)
    return told + (f"; {troubled} machines keep everything: their plan cannot be read" if troubled else "")


def to_json(machines: Sequence[Machine]) -> dict[str, object]:
    """The documented form; keys are only ever added."""
    return {
        "machines": [
            {
                "machine": machine.name,
                "trouble": machine.trouble or None,
                "backups": [_leaf_json(one) for one in machine.judged],
            }
            for machine in machines
        ]
    }


def _leaf_json(one: Judged) -> dict[str, object]:
    hold = hold_of(one.leaf)
    return {
        "timestamp": one.leaf.timestamp,
        "mode": one.leaf.raw_mode,
        "return_value": one.leaf.return_value,
        "goes": one.goes,
        "reasons": list(one.reasons),
        "hold": hold_text(hold) if hold else None,
    }


def _rows(machines: Sequence[Machine]) -> list[tuple[str, str, str, str]]:
    return [
        (printable(machine.name), one.leaf.timestamp, "goes" if one.goes else "stays", printable(one.why))
        for machine in machines
        for one in machine.judged
    ]
