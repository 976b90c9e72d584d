"""The schedule of `serve`: once a minute, start what is due.

Nothing is remembered here that a restart could lose: a slot is done when its leaf, or a later one, exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from controller.decide import Bounds
from controller.lookout import Lookout
from controller.run import Choice, Fate, Reader, start
from vmkeep.contract.timetable import Why


@dataclass
class Scheduler:
    """What stays the same from turn to turn; `read_leaves` and `step_back` as `start` wants them.

    `at_once` leaves at most are added between two turns of the cycle: those in flight must not wait for thousands.
    """

    lookout: Lookout
    bounds: Bounds
    log: FilteringBoundLogger
    clock: Callable[[], datetime]
    read_leaves: Reader
    step_back: Callable[[int], None]
    at_once: int = 1000
    _minute: datetime | None = None
    _pending: tuple[Choice, ...] = ()
    _said: dict[str, str] = field(default_factory=dict)
    _waiting: frozenset[tuple[str, str]] = frozenset()

    def turn(self) -> float:
        """Start what is due, where this minute has not been looked at; in how many seconds to come again."""
        now = self.clock()
        minute = now.replace(second=0, microsecond=0)
        pending = self._pending if self._minute == minute else self._look(now)
        self._minute = None  # whatever ends this turn early, the next one looks again
        self._start(pending[: self.at_once], now)
        self._pending, self._minute = pending[self.at_once :], minute
        return 0.0 if pending else 60.0 - now.second - now.microsecond / 1e6

    def _look(self, now: datetime) -> tuple[Choice, ...]:
        before = self.lookout.tables
        due = self.lookout.look(now)
        if self.lookout.tables is not before:
            self.log.debug("read all machines and plans", machines=len(self.lookout.tables))
        self._tell_once(dict(self._remarks(now)))
        self._waiting &= {(choice.machine, choice.timestamp) for choice in due}
        return due

    def _start(self, due: tuple[Choice, ...], now: datetime) -> None:
        if not due:
            return
        catalogue = self.lookout.catalogue
        started = start(catalogue, due, now, self.bounds, self.read_leaves, self.step_back)
        for wanted, choice in zip(due, started.choices, strict=True):
            if choice.fate is Fate.BACK_UP:
                why = f" ({choice.sentence})" if choice.sentence else ""
                self.log.info(f"{choice.machine}: {choice.timestamp} is due{why}")
            elif choice.timestamp != wanted.timestamp:
                self._tell_waiting(wanted, choice)

    def _tell_waiting(self, wanted: Choice, choice: Choice) -> None:
        key = wanted.machine, wanted.timestamp
        if key not in self._waiting:
            self.log.warning(f"{wanted.machine}: {wanted.timestamp} is due and waits: {_unnamed(choice)}")
        self._waiting |= {key}

    def _remarks(self, now: datetime) -> Iterator[tuple[str, str]]:
        tables = self.lookout.tables
        yield from self.lookout.ahead(now)
        yield from ((one.machine, f"{one.machine}: {_unnamed(one)}") for one in self.lookout.refused())
        planned = sum(one.schedule is not None for one in tables.values())
        others = ((why, sum(one.why is why for one in tables.values())) for why in Why)
        counted = [f"{number} {why}" for why, number in others if number]
        yield "", ", ".join([f"{planned} machines have a schedule", *counted]) + "; `vmkeep plan` says when and why"

    def _tell_once(self, remarks: dict[str, str]) -> None:
        for machine, sentence in remarks.items():
            if self._said.get(machine) != sentence:
                (self.log.warning if machine else self.log.info)(sentence)
        self._said = remarks


def _unnamed(choice: Choice) -> str:
    """What is said of a machine, whether it begins with its name or not."""
    return choice.sentence.removeprefix(f"{choice.machine}: ")
