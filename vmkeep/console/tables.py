"""The tables of `vmkeep status` and `vmkeep plan`, for people."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vmkeep.console.effective import Setting
from vmkeep.console.sets import BackupSet
from vmkeep.console.status import Standing, Status, of_its_group, what_runs, why_failed
from vmkeep.contract.promises import told_together

_STYLES = {
    Standing.OK: "green",
    Standing.RUNNING: "cyan",
    Standing.WAITS: "bold cyan",
    Standing.FAILED: "bold red",
    Standing.NEVER: "yellow",
    Standing.LEFT_OUT: "dim",
}
_HEAD = ("machine", "node", "standing", "last success", "age", "size", "downtime", "running, failed")
_STANDING = 2
_FIGURES = (4, 5, 6)
_SETS_HEAD = ("machine", "timestamp", "power", "consistency", "size", "node", "directory")
_SETS_FIGURES = (4,)
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def status_table(statuses: Sequence[Status]) -> Table:
    """A line a machine, for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(_HEAD[:-1]):
        table.add_column(name, justify="right" if number in _FIGURES else "left", no_wrap=True)
    table.add_column(_HEAD[-1], overflow="fold")
    for status in statuses:
        # Text, never markup: what the directory holds must not be read as instructions to the terminal.
        cells = [Text(cell) for cell in _row(status)]
        cells[_STANDING].stylize(_STYLES[status.standing])
        table.add_row(*cells)
    return table


def status_lines(statuses: Sequence[Status]) -> list[str]:
    """The same for a pipe or a file: never folded, without colours, and quick for any number of machines."""
    return _lines([_HEAD, *map(_row, statuses)], _FIGURES)


def plan_table(settings: Sequence[Setting]) -> Table:
    """A line for each value of a plan, with where it comes from."""
    table = Table("attribute", "value", "from", box=None, pad_edge=False, header_style="bold")
    for setting in settings:
        table.add_row(Text(setting.attribute), Text(setting.value), Text(setting.origin))
    return table


def sets_table(sets: Sequence[BackupSet]) -> Table:
    """A line a set, for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(_SETS_HEAD):
        table.add_column(name, justify="right" if number in _SETS_FIGURES else "left", overflow="fold")
    for one in sets:
        table.add_row(*(Text(cell) for cell in _set_row(one)))
    return table


def sets_lines(sets: Sequence[BackupSet]) -> list[str]:
    """The same for a pipe or a file."""
    return _lines([_SETS_HEAD, *map(_set_row, sets)], _SETS_FIGURES)


def summary(statuses: Sequence[Status]) -> str:
    """How many machines stand how."""
    counted = ((standing, sum(status.standing is standing for status in statuses)) for standing in Standing)
    return f"{len(statuses)} machines: " + ", ".join(f"{number} {standing}" for standing, number in counted if number)


def not_covered(statuses: Sequence[Status]) -> str:
    """The machines that no plan covers, on one line; empty where there are none."""
    names = [printable(status.machine) for status in statuses if status.lack and not status.broken_promise]
    return told_together(names) if names else ""


def size_text(size: int | None) -> str:
    """Bytes in the largest unit that fits."""
    if size is None:
        return "-"
    return next((f"{size / unit:.1f} {name}" for unit, name in _UNITS if size >= unit), f"{size} B")


def age_text(seconds: float | None) -> str:
    """Seconds in the largest unit that fits."""
    if seconds is None:
        return "-"
    return next((f"{seconds / unit:.1f} {name}" for unit, name in _AGES if seconds >= unit), f"{seconds:.0f} s")


def _row(status: Status) -> tuple[str, ...]:
    downtime = "-" if status.downtime is None else f"{status.downtime:.2f} s"
    return (
        printable(status.machine),
        printable(status.node or "-"),
        status.standing.value,
        status.last_success or "-",
        age_text(status.age),
        size_text(status.size),
        downtime,
        printable(_remarks(status)),
    )


def _set_row(one: BackupSet) -> tuple[str, ...]:
    manifest = one.manifest
    named = (manifest.machine, manifest.timestamp, manifest.power.value, manifest.consistency)
    return (*named, size_text(manifest.size), printable(manifest.node), printable(str(one.directory)))


def _lines(rows: Sequence[Sequence[str]], figures: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_aligned(row, widths, figures) for row in rows]


def _aligned(row: Sequence[str], widths: Sequence[int], figures: Sequence[int]) -> str:
    pairs = enumerate(zip(row, widths, strict=True))
    cells = (cell.rjust(width) if number in figures else cell.ljust(width) for number, (cell, width) in pairs)
    return "  ".join(cells).rstrip()


def _remarks(status: Status) -> str:
    remarks = []
    if status.running:
        remarks.append(what_runs(status.running) + (", though its window is over" if status.is_late else ""))
    if status.failed:
        remarks.append(why_failed(status.failed))
    if broken := of_its_group(status):
        remarks.append(broken)
    if status.trouble:
        remarks.append(status.trouble)
    elif status.broken_promise:
        remarks.append(status.broken_promise.removeprefix(f"{status.machine}: "))
    return "; ".join(remarks)


def printable(text: str) -> str:
    """Text without what a terminal would take as a command."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)
