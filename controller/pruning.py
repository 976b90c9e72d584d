"""Asks for the deletion of what the plans keep no longer: of a machine after its good backup, of all once an hour.

Called by `serve` and `run` after each turn of the cycle, which moves and removes what was asked for. A machine whose
plan says not what to keep loses nothing, is told of, and keeps no other from its turn.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from structlog.typing import FilteringBoundLogger

from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.pruning import Judged, to_ask
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import Claim
from vmkeep.directory.pruning import ask, judge_machine, read_surveyed, restored_elsewhere
from vmkeep.directory.survey import Surveyed, survey
from vmkeep.service.metrics import Metrics

_AHEAD = timedelta(minutes=5)  # less is the difference of two clocks, and over by the next look


@dataclass
class Pruner:
    """What stays the same from turn to turn. `when_asked` hears of each leaf whose deletion was asked for.

    `at_once` machines at most are judged between two turns of the cycle: leaves in flight must not wait for thousands.
    """

    catalogue: Catalogue
    zone: ZoneInfo
    log: FilteringBoundLogger
    clock: Callable[[], datetime]
    metrics: Metrics = field(default_factory=Metrics)
    every: timedelta | None = timedelta(hours=1)  # None: only machines that are named
    at_once: int = 50
    elapsed: Callable[[], float] = time.monotonic
    when_asked: Callable[[Leaf], None] = lambda _leaf: None
    _waiting: deque[Surveyed | str] = field(default_factory=deque)
    _looked_at: float | None = None
    _told: dict[str, str] = field(default_factory=dict)

    def turn(self, ended: set[str]) -> float | None:
        """Judge some machines, those in `ended` first, which are taken out of it; in how many seconds to come again."""
        while ended:
            self._waiting.appendleft(ended.pop())
        self._look_at_all()
        for _ in range(min(self.at_once, len(self._waiting))):
            self._judge_next()
        self.metrics.not_pruned.set(len(self._told))
        return 0.0 if self._waiting else self._seconds_to_next()

    def _look_at_all(self) -> None:
        if self._seconds_to_next() == 0.0:
            everybody = list(survey(self.catalogue))
            known = {one.machine.name for one in everybody}
            self._told = {name: sentence for name, sentence in self._told.items() if name in known}
            self._waiting = deque(everybody)
            self._looked_at = self.elapsed()

    def _seconds_to_next(self) -> float | None:
        if self.every is None or self._looked_at is None:
            return None if self.every is None else 0.0
        return max(0.0, self._looked_at + self.every.total_seconds() - self.elapsed())

    def _judge_next(self) -> None:
        one = self._waiting.popleft()
        try:
            self._judge(one)
        except TryLater:
            self._waiting.append(one)  # behind the others: perhaps it alone cannot be read
            raise

    def _judge(self, one: Surveyed | str) -> None:
        surveyed = read_surveyed(self.catalogue, one) if isinstance(one, str) else one
        if surveyed is None:
            return
        name, now = surveyed.machine.name, self.clock()
        try:
            judged = judge_machine(self.catalogue, surveyed, {}, now, self.zone)
            if to_ask(
                judged
            ):  # what is made of its sets elsewhere is looked for only now, as hardly anything ever goes
                elsewhere = restored_elsewhere(self.catalogue)
                judged = judge_machine(self.catalogue, surveyed, elsewhere, now, self.zone)
            for each in to_ask(judged):
                self._ask(each)
        except Refused as why:
            self._tell_once(name, why.sentence)
            return
        self._tell_once(name, next(_oddities(name, judged, now), ""))

    def _ask(self, one: Judged) -> None:
        outcome = ask(self.catalogue, one)
        self.metrics.claims.labels(outcome.value).inc()
        if outcome is Claim.WON:
            self.log.info(f"{one.leaf.machine}: {one.leaf.timestamp} is to be deleted ({one.why})")
            self.when_asked(one.leaf)

    def _tell_once(self, name: str, sentence: str) -> None:
        if not sentence:
            self._told.pop(name, None)
        elif self._told.get(name) != sentence:
            self._told[name] = sentence
            self.log.warning(f"{name}: no old backup of it goes: {sentence.removeprefix(f'{name}: ')}")


def _oddities(name: str, judged: Collection[Judged], now: datetime) -> Iterator[str]:
    for newest in list(judged)[:1]:
        if newest.leaf.planned > now + _AHEAD:
            yield f"{name}: {newest.why}; delete that leaf if it is wrong"
