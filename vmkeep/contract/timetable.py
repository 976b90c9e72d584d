"""When a machine is backed up by its plan, which slot of it is due, or why there is none. Pure.

The controller starts what is due by this; `vmkeep plan` shows it. Nothing is remembered but the leaves: a slot is done
when a leaf has its name, or a later one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Machine, check_name, check_node
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Schedule, Source, is_excluded, schedule_of, source_of
from vmkeep.contract.slots import slots

# A clock that was set back finds leaves ahead of it, and must not run their slots again. Leaves that lie further ahead
# were made by a clock gone wrong: waiting for 2099 would end the machine's backups.
AHEAD = timedelta(days=1)
_MOST_COUNTED = 1000


class Why(StrEnum):
    """Why a machine is not backed up by a schedule."""

    LEFT_OUT = "left out"
    NO_SCHEDULE = "no schedule"
    NOT_ACTIVE = "not active"
    REFUSED = "refused"


@dataclass(frozen=True)
class Timetable:
    """One machine. Either `schedule` says when, or `why`, `sentence` and `code` say why not."""

    machine: str
    schedule: Schedule | None = None
    why: Why | None = None
    sentence: str = ""
    code: ReturnValue = ReturnValue.SUCCESS


def timetable(machine: Machine, sources: Sequence[Source]) -> Timetable:
    """What the plan of a machine asks for."""
    name = machine.name
    try:
        check_name(name)
        if is_excluded(name, sources):
            return Timetable(name, why=Why.LEFT_OUT, sentence=_is_set(Attribute.EXCLUDE, "TRUE", sources))
        schedule = schedule_of(name, sources)
        if schedule is None:
            return Timetable(name, why=Why.NO_SCHEDULE, sentence=_missing(sources))
        if not schedule.active:
            return Timetable(name, why=Why.NOT_ACTIVE, sentence=_is_set(Attribute.CRON_ACTIVE, "FALSE", sources))
        check_node(machine)
    except Refused as why:
        return Timetable(name, why=Why.REFUSED, sentence=why.sentence, code=why.code)
    return Timetable(name, schedule)


def last_that_counts(leaves: Iterable[datetime], now: datetime) -> datetime | None:
    """The newest leaf that is not further ahead of the clock than AHEAD."""
    return max((leaf for leaf in leaves if leaf <= now + AHEAD), default=None)


def due_slot(newest: datetime | None, last: datetime | None) -> datetime | None:
    """The slot to start now: the newest that has come, where `last`, the newest leaf that counts, is older.

    Older slots that were missed are never started: one backup now is worth as much as five.
    """
    return newest if newest is not None and (last is None or last < newest) else None


def left_out(schedule: Schedule, zone: ZoneInfo, last: datetime, slot: datetime) -> int:
    """How many slots between the newest leaf and the one that is started get none; counted to a thousand."""
    between = takewhile(lambda one: one < slot, slots(schedule, zone, last))
    return sum(1 for _ in islice(between, _MOST_COUNTED))


def _is_set(attribute: Attribute, value: str, sources: Sequence[Source]) -> str:
    source = source_of(attribute, sources)
    return f"{attribute} is {value} in {source.dn}" if source else f"no plan sets {attribute} to TRUE"


def _missing(sources: Sequence[Source]) -> str:
    wanted = (Attribute.CRON_MINUTE, Attribute.CRON_HOUR)
    names = " and ".join(attribute for attribute in wanted if source_of(attribute, sources) is None)
    looked = ", ".join(source.dn for source in sources) or "no entry at all"
    return f"no plan sets {names}; looked in {looked}"
