"""What the schedules would start from a time on, and why a machine would not be: pure. Shown by `vmkeep plan`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from itertools import takewhile
from zoneinfo import ZoneInfo

from vmkeep.contract.leaf import Leaf
from vmkeep.contract.plan import Schedule
from vmkeep.contract.pruning import is_being_deleted
from vmkeep.contract.slots import newest_slot, slots
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.contract.timetable import Timetable, due_slot, last_that_counts

_NAMED = 8  # of the machines of one slot, on a line for people


class Delay(StrEnum):
    """Why a machine with a schedule does not start now, or within the days shown."""

    WAITS = "waits"
    LATER = "later"


@dataclass(frozen=True)
class Window:
    """From when until when is looked, and in which zone the cron fields are."""

    at: datetime
    days: int
    zone: ZoneInfo

    @property
    def until(self) -> datetime:
        """The last instant that is shown."""
        return self.at + timedelta(days=self.days)

    def local(self, moment: datetime) -> str:
        """A moment as the cluster's clock shows it."""
        return f"{moment.astimezone(self.zone):%a %Y-%m-%d %H:%M %Z}"


@dataclass(frozen=True)
class Start:
    """Machines that start together. `is_late`: the slot has passed without a leaf, and is started at once."""

    slot: datetime
    machines: tuple[str, ...]
    is_late: bool = False


@dataclass(frozen=True)
class Absence:
    """A machine that does not start, or not at once, and why."""

    machine: str
    why: str
    sentence: str


@dataclass(frozen=True)
class Outlook:
    """What starts within a window, in order, and what does not."""

    window: Window
    starts: tuple[Start, ...]
    absences: tuple[Absence, ...]


def outlook(tables: Sequence[Timetable], leaves: Iterable[Leaf], window: Window) -> Outlook:
    """What would start, as the directory stands now."""
    by_machine: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        by_machine.setdefault(leaf.machine.casefold(), []).append(leaf)
    newest = cache(lambda schedule: newest_slot(schedule, window.zone, window.at))
    coming = cache(lambda schedule: _coming(schedule, window))
    late: dict[datetime, list[str]] = {}
    planned: dict[datetime, list[str]] = {}
    absences = [Absence(one.machine, one.why, one.sentence) for one in tables if one.why]
    for name, schedule in ((one.machine, one.schedule) for one in tables if one.schedule):
        own = by_machine.get(name.casefold(), [])
        due = due_slot(newest(schedule), last_that_counts((leaf.planned for leaf in own), window.at))
        if due:
            late.setdefault(due, []).append(name)
            absences += _waiting(name, due, own)
        for slot in coming(schedule):
            planned.setdefault(slot, []).append(name)
        if not due and not coming(schedule):
            absences.append(Absence(name, Delay.LATER, _when_at_last(schedule, window)))
    starts = (*_starts(late, is_late=True), *_starts(planned, is_late=False))
    return Outlook(window, starts, tuple(sorted(absences, key=lambda one: one.machine)))


def lines(found: Outlook) -> list[str]:
    """For people: a line a slot, and a line a machine that does not start."""
    return [*(_line(start, found.window) for start in found.starts), *map(_absence_line, found.absences)]


def to_json(found: Outlook) -> dict[str, object]:
    """The documented form; keys are only ever added."""
    window = found.window
    return {
        "from": to_timestamp(window.at),
        "until": to_timestamp(window.until),
        "timezone": window.zone.key,
        "starts": [
            {
                "slot": to_timestamp(start.slot),
                "local": start.slot.astimezone(window.zone).isoformat(timespec="minutes"),
                "at_once": start.is_late,
                "machines": list(start.machines),
            }
            for start in found.starts
        ],
        "absences": [{"machine": one.machine, "why": one.why, "sentence": one.sentence} for one in found.absences],
    }


def _coming(schedule: Schedule, window: Window) -> tuple[datetime, ...]:
    return tuple(takewhile(lambda slot: slot <= window.until, slots(schedule, window.zone, window.at)))


def _waiting(name: str, due: datetime, leaves: Sequence[Leaf]) -> list[Absence]:
    in_flight = [leaf for leaf in leaves if leaf.is_in_flight and not is_being_deleted(leaf)]
    said = f"{to_timestamp(due)} is due and waits for the leaf"
    return [Absence(name, Delay.WAITS, f"{said} {leaf.timestamp}, which is {leaf.raw_mode}") for leaf in in_flight[:1]]


def _when_at_last(schedule: Schedule, window: Window) -> str:
    following = next(slots(schedule, window.zone, window.at), None)
    return f"its next time is {window.local(following)}" if following else "no time fits within 50 years"


def _starts(found: Mapping[datetime, list[str]], *, is_late: bool) -> Iterable[Start]:
    return (Start(slot, tuple(sorted(found[slot])), is_late) for slot in sorted(found))


def _line(start: Start, window: Window) -> str:
    more = len(start.machines) - _NAMED
    names = ", ".join(start.machines[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    late = f"at once, missed at {window.local(start.slot)}" if start.is_late else window.local(start.slot)
    return f"{late}  {to_timestamp(start.slot)}  {names}"


def _absence_line(absence: Absence) -> str:
    return f"{absence.machine}  {absence.why}: {absence.sentence.removeprefix(f'{absence.machine}: ')}"
