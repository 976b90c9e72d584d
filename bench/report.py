"""Figures for people and for programs: a table, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Spread
from bench.latencies import Latency

_DIGITS = {"s": 3, "ms": 1, "MiB": 1, "×": 3}


def to_json(lines: Sequence[Figure | Latency], *, quick: bool, runs: int) -> str:
    """All figures, with whether each is met, and what synced writes took."""
    figures, latencies = _apart(lines)
    rows: list[dict[str, Any]] = [
        {**asdict(figure), "is_met": figure.is_met, "verdict": figure.verdict} for figure in figures
    ]
    content = {"quick": quick, "runs": runs, "figures": rows, "write_latencies": [asdict(each) for each in latencies]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def to_table(figures: Sequence[Figure], *, quick: bool) -> Table:
    """One line a figure."""
    title = "vmkeep beside raw tools" + (" (QUICK: small sizes, few runs; proves nothing)" if quick else "")
    table = Table(title=title, show_lines=True)
    for heading in ("what", "vmkeep", "raw twin", "median (min–max)", "bar", ""):
        table.add_column(heading, overflow="fold")
    for figure in figures:
        table.add_row(*_cells(figure), style=None if figure.is_met else "bold red")
    return table


def to_latency_table(latencies: Sequence[Latency]) -> Table:
    """One line for each phase of each method."""
    table = Table(title="a guest's own synced writes while it is backed up, ms by the guest's clock")
    for heading in ("where to", "method", "phase"):
        table.add_column(heading)
    for heading in ("p50", "p99", "worst", "longest silence, host's clock", "writes"):
        table.add_column(heading, justify="right")
    for each in latencies:
        numbers = (each.p50, each.p99, each.worst, each.silence)
        table.add_row(each.where, each.method, each.phase, *(f"{ms:.1f}" for ms in numbers), str(each.writes))
    return table


def show(lines: Sequence[Figure | Latency], *, quick: bool) -> None:
    """Print the tables."""
    figures, latencies = _apart(lines)
    # A log or a pipe has no width of its own.
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    if figures:
        console.print(to_table(figures, quick=quick))
    if latencies:
        console.print(to_latency_table(latencies))


def _apart(lines: Sequence[Figure | Latency]) -> tuple[list[Figure], list[Latency]]:
    figures = [line for line in lines if isinstance(line, Figure)]
    return figures, [line for line in lines if isinstance(line, Latency)]


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
