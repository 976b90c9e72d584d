"""Figures for people and for programs: a table, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Spread

_DIGITS = {"s": 3, "ms": 1, "MiB": 1, "×": 3}


def to_json(figures: Sequence[Figure], *, quick: bool, runs: int) -> str:
    """All figures, with whether each is met."""
    rows: list[dict[str, Any]] = [
        {**asdict(figure), "is_met": figure.is_met, "verdict": figure.verdict} for figure in figures
    ]
    return json.dumps({"quick": quick, "runs": runs, "figures": rows}, indent=2, ensure_ascii=False) + "\n"


def to_table(figures: Sequence[Figure], *, quick: bool) -> Table:
    """One line a figure."""
    title = "vmkeep beside raw tools" + (" (QUICK: small sizes, few runs; proves nothing)" if quick else "")
    table = Table(title=title, show_lines=True)
    for heading in ("what", "vmkeep", "raw twin", "median (min–max)", "bar", ""):
        table.add_column(heading, overflow="fold")
    for figure in figures:
        table.add_row(*_cells(figure), style=None if figure.is_met else "bold red")
    return table


def show(figures: Sequence[Figure], *, quick: bool) -> None:
    """Print the table."""
    # A log or a pipe has no width of its own.
    console = Console()
    (console if console.is_terminal else Console(width=170)).print(to_table(figures, quick=quick))


def _cells(figure: Figure) -> tuple[str, ...]:
    what = f"{figure.row}: {figure.measured}\n{figure.amount}; {figure.value.count} runs"
    return (
        what + (f"\n{figure.note}" if figure.note else ""),
        shown(figure.ours, figure.sample_unit),
        f"{figure.twin}\n{shown(figure.raw, figure.sample_unit)}",
        shown(figure.value, figure.unit),
        f"≤ {figure.bar:.2f} {figure.unit}",
        figure.verdict,
    )


def shown(spread: Spread | None, unit: str) -> str:
    """`1.018 × (1.002–1.044)`; nothing for nothing."""
    if spread is None:
        return ""
    digits = _DIGITS[unit]
    return f"{spread.median:.{digits}f} {unit} ({spread.least:.{digits}f}–{spread.most:.{digits}f})"
