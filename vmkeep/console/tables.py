"""The tables of `vmkeep status` and `vmkeep plan`, for people."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vmkeep.console.effective import Setting
from vmkeep.console.status import Standing, Status, why_failed

_STYLES = {
    Standing.OK: "green",
    Standing.RUNNING: "cyan",
    Standing.FAILED: "bold red",
    Standing.NEVER: "yellow",
    Standing.LEFT_OUT: "dim",
}
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def status_table(statuses: Sequence[Status]) -> Table:
    """A line a machine."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("machine", "node", "standing", "last success"):
        table.add_column(name, no_wrap=True)
    for name in ("age", "size", "downtime"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("running, failed", overflow="fold")
    for status in statuses:
        table.add_row(*_row(status))
    return table


def plan_table(settings: Sequence[Setting]) -> Table:
    """A line for each value of a plan, with where it comes from."""
    table = Table("attribute", "value", "from", box=None, pad_edge=False, header_style="bold")
    for setting in settings:
        table.add_row(Text(setting.attribute), Text(setting.value), Text(setting.origin))
    return table


def summary(statuses: Sequence[Status]) -> str:
    """How many machines stand how."""
    counted = ((standing, sum(status.standing is standing for status in statuses)) for standing in Standing)
    return f"{len(statuses)} machines: " + ", ".join(f"{number} {standing}" for standing, number in counted if number)


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


def _row(status: Status) -> tuple[Text, ...]:
    downtime = "-" if status.downtime is None else f"{status.downtime:.2f} s"
    # Text, never markup: what the directory holds must not be read as instructions to the terminal.
    return (
        Text(status.machine),
        Text(status.node or "-"),
        Text(status.standing.value, style=_STYLES[status.standing]),
        Text(status.last_success or "-"),
        Text(age_text(status.age)),
        Text(size_text(status.size)),
        Text(downtime),
        Text(_remarks(status)),
    )


def _remarks(status: Status) -> str:
    remarks = []
    if status.running:
        percent = "" if status.running.percent is None else f" {status.running.percent} %"
        remarks.append(f"{status.running.raw_mode}{percent}")
    if status.failed:
        remarks.append(why_failed(status.failed))
    if status.trouble:
        remarks.append(status.trouble)
    return "; ".join("".join(character if character.isprintable() else "?" for character in one) for one in remarks)
