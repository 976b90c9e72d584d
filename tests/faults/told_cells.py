"""The cells of a run as a table for people: a line for each fault, a column for each mode of work."""

from collections.abc import Iterable, Mapping

from tests.faults.strikes import Cell
from vmkeep.contract.modes import Mode

_INSTANT = 0.01  # s; nobody looked for a machine to come up


def table(strikes: Mapping[str, Mapping[Mode, Cell]], modes: Iterable[Mode]) -> str:
    """Markdown. Each cell says how the work ended; the last column in how many seconds every machine was up again."""
    columns = list(modes)
    lines = [f"| fault | {' | '.join(columns)} | up after |", f"|{' --- |' * (len(columns) + 2)}"]
    for fault, cells in strikes.items():
        up = max(cell.up for cell in cells.values())
        told = f"{up:.1f} s" if up > _INSTANT else "off by the fault"
        lines.append(f"| {fault} | {' | '.join(cells[mode].ended for mode in columns)} | {told} |")
    return "\n".join(lines)
