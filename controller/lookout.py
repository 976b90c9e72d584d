"""Looks out for machines that are due by their plans. Called by the schedule of `serve`, and by `run --due`.

What is kept from look to look only saves reading: plans are read again when one of them has changed, leaves for
machines of which a slot has come.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from controller.run import Choice, Fate
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.plan import Schedule
from vmkeep.contract.slots import newest_slot
from vmkeep.contract.timestamps import from_timestamp, to_timestamp
from vmkeep.contract.timetable import AHEAD, Timetable, Why, due_slot, last_that_counts, left_out, timetable
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.survey import survey

_LATE = timedelta(minutes=5)  # until then a slot is on time: controllers look once a minute, and may be restarted
_FEW = 50  # machines whose leaves are asked for one by one; for more, one search brings them all


@dataclass
class Lookout:
    """`tables` are the machines' timetables, by folded name, as of the last look; `zone` is that of the cron fields.

    `version` is another one after each change of plans; nobody can tell where it is empty, and each look reads them.
    """

    catalogue: Catalogue
    zone: ZoneInfo
    version: Callable[[], tuple[str, ...]] = tuple
    tables: dict[str, Timetable] = field(default_factory=dict)
    _bare: frozenset[str] = frozenset()  # machines without ou=backup
    _last: dict[str, datetime] = field(default_factory=dict)
    _astray: dict[str, str] = field(default_factory=dict)
    _version: tuple[str, ...] = ()

    def look(self, now: datetime) -> tuple[Choice, ...]:
        """The machines that are due, each with its slot, in the order of slots and names."""
        self._read_plans()
        newest = cache(lambda schedule: newest_slot(schedule, self.zone, now))
        asked = [(key, one.schedule) for key, one in self.tables.items() if one.schedule]
        came = [(key, schedule) for key, schedule in asked if due_slot(newest(schedule), self._last.get(key))]
        last = self._read_leaves([key for key, _ in came], now)
        why = cache(lambda schedule, last, slot: self._why_late(schedule, last, slot, now))
        due = [
            self._choice(key, slot, why(schedule, last.get(key), slot))
            for key, schedule in came
            if (slot := due_slot(newest(schedule), last.get(key)))
        ]
        return tuple(sorted(due, key=lambda choice: (choice.timestamp, choice.machine)))

    @property
    def is_anything_planned(self) -> bool:
        """Whether any machine has a schedule."""
        return any(one.schedule for one in self.tables.values())

    def refused(self) -> tuple[Choice, ...]:
        """The machines whose plan cannot be read, or that cannot be backed up as they are."""
        refused = (one for one in self.tables.values() if one.why is Why.REFUSED)
        return tuple(Choice(one.machine, Fate.REFUSED, sentence=one.sentence, code=one.code) for one in refused)

    def ahead(self, now: datetime) -> Iterator[tuple[str, str]]:
        """Machines, and a sentence on their leaves that lie ahead of the clock."""
        for key, timestamp in self._astray.items():
            if key in self.tables and from_timestamp(timestamp) > now + AHEAD:
                name = self.tables[key].machine
                yield name, f"{name}: the leaf {timestamp} lies more than a day ahead of the clock and does not count"
        for key, last in self._last.items():
            if last > now + _LATE:
                name, until = self.tables[key].machine, to_timestamp(last)
                yield name, f"{name}: its newest leaf {until} lies ahead of the clock; no slot before it is started"

    def _read_plans(self) -> None:
        version = self.version()
        if version and version == self._version:
            return
        found = [
            (one.machine.name.casefold(), one.machine.has_backup_subtree, timetable(one.machine, one.sources))
            for one in survey(self.catalogue)
        ]
        self.tables = {key: table for key, _, table in found}
        self._bare = frozenset(key for key, has_subtree, _ in found if not has_subtree)
        self._last = {key: last for key, last in self._last.items() if key in self.tables}
        self._version = version

    def _read_leaves(self, machines: Collection[str], now: datetime) -> dict[str, datetime]:
        """The newest leaf that counts of each machine.

        Once known it is remembered as long as we run: deleted, it does not make its slot due again. But one that was
        only added may be taken back by who added it, and must not pass for a slot that ran.
        """
        found = {key: self._last[key] for key in machines if key in self._last}
        wanted = set(machines)
        self._astray = {key: timestamp for key, timestamp in self._astray.items() if key not in wanted}
        for leaf in self._leaves(wanted):
            key = leaf.machine.casefold()
            if last_that_counts([leaf.planned], now) is None:
                self._astray[key] = leaf.timestamp
            elif key in wanted:
                found[key] = max(leaf.planned, found.get(key, leaf.planned))
                if leaf.mode is not Mode.INITIALIZE:
                    self._last[key] = max(leaf.planned, self._last.get(key, leaf.planned))
        return found

    def _leaves(self, wanted: set[str]) -> Iterator[Leaf]:
        for machine in [self.tables[key].machine for key in wanted] if len(wanted) <= _FEW else [None]:
            yield from self.catalogue.standing_leaves(machine)

    def _choice(self, key: str, slot: datetime, sentence: str) -> Choice:
        has_subtree = key not in self._bare
        timestamp, name = to_timestamp(slot), self.tables[key].machine
        return Choice(name, Fate.BACK_UP, timestamp=timestamp, sentence=sentence, has_backup_subtree=has_subtree)

    def _why_late(self, schedule: Schedule, last: datetime | None, slot: datetime, now: datetime) -> str:
        """What the leaf says of a slot that is caught up, and of those that never will be; empty where all is well."""
        said = []
        if now - slot > _LATE:
            minutes = int((now - slot).total_seconds()) // 60
            said.append(f"begun {minutes // 60} h {minutes % 60} min after its time")
        if last and (number := left_out(schedule, self.zone, last, slot)):
            said.append(f"slots left out since {to_timestamp(last)}: {number}")
        return "; ".join(said)


def slots_of(due: Iterable[Choice]) -> list[str]:
    """The slots of the machines that are due, each once, oldest first."""
    return sorted({choice.timestamp for choice in due})
