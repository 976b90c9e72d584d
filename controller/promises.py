"""Tells of machines without the good backup their plan promises, and of those that no plan covers.

For `serve`: once an hour it looks, says each once and again every day, and counts them. `check` looks once. What fails
is asked again or waits for its next time; this is how people hear of what nothing made up for.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import TABLE, Circle, Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.promises import Lack, LackKind, has_good_set, lack, lies_ahead, told_together
from vmkeep.directory.catalogue import LEAVES, Catalogue, leaf_of
from vmkeep.directory.port import AllOf, AnyOf, Equals
from vmkeep.directory.survey import survey
from vmkeep.service.metrics import Metrics

_HOUR, _DAY = 3600.0, 86_400.0
_EACH = 50  # broken promises that get a line of their own
_WITH_A_SET = AllOf(
    (
        LEAVES,
        AnyOf(
            (
                AllOf((Equals(Attribute.MODE, Mode.FINISHED), Equals(Attribute.RETURN_VALUE, "0"))),
                *(Equals(Attribute.MODE, row.mode) for row in TABLE if row.circle is Circle.RESTORE),
            )
        ),
    )
)
_READ = (
    *("objectClass", "ou"),
    *(Attribute.MODE, Attribute.STATE, Attribute.RETURN_VALUE, Attribute.MANIFEST_DIGEST, Attribute.RESTORE_FROM),
)


@dataclass(frozen=True)
class Lacking:
    """What all machines of the cluster lack, in the order of their names."""

    broken: tuple[Lack, ...]
    uncovered: tuple[Lack, ...]

    def sentences(self) -> Iterator[tuple[str, str]]:
        """What to say of the broken promises, each under a key that stays the same while it is the same."""
        yield from ((one.machine, one.sentence) for one in self.broken[:_EACH])
        if len(self.broken) > _EACH:
            yield "", f"and {len(self.broken) - _EACH} more machines lack the good backup they are promised"

    @property
    def not_covered(self) -> str:
        """Those that no plan covers, on one line; empty where there are none."""
        return told_together([one.machine for one in self.uncovered]) if self.uncovered else ""


def lacking(catalogue: Catalogue, now: datetime) -> Lacking:
    """Look at every machine: two searches more than the plans take, whose leaves are forgotten but for the newest."""
    leaves = _newest_good(catalogue, now)
    every = ((one, leaves.get(one.machine.name.casefold(), ())) for one in survey(catalogue))
    found = (lack(one.machine, one.sources, its_leaves, now) for one, its_leaves in every)
    known = sorted((one for one in found if one), key=lambda one: one.machine)
    broken = tuple(one for one in known if one.kind is LackKind.BROKEN)
    return Lacking(broken, tuple(one for one in known if one.kind is LackKind.UNCOVERED))


def _newest_good(catalogue: Catalogue, now: datetime) -> dict[str, tuple[Leaf, ...]]:
    """Of each machine the newest good leaf that counts, and the newest that lies ahead of the clock."""
    newest: dict[tuple[str, bool], Leaf] = {}
    for entry in catalogue.store.search(catalogue.tree.machines, _WITH_A_SET, attributes=_READ):
        leaf = leaf_of(entry)
        if leaf is None or not has_good_set(leaf):
            continue
        key = leaf.machine.casefold(), lies_ahead(leaf, now)
        if key not in newest or newest[key].timestamp < leaf.timestamp:
            newest[key] = leaf
    found: dict[str, tuple[Leaf, ...]] = {}
    for (machine, _), leaf in newest.items():
        found[machine] = (*found.get(machine, ()), leaf)
    return found


@dataclass
class Watch:
    """What stays the same from turn to turn."""

    catalogue: Catalogue
    log: FilteringBoundLogger
    metrics: Metrics
    clock: Callable[[], datetime]
    elapsed: Callable[[], float] = time.monotonic
    _next: float | None = None
    _told: dict[str, float] = field(default_factory=dict)  # when each was last told

    def turn(self) -> float:
        """Look, where an hour has passed since; in how many seconds to come again."""
        now = self.elapsed()
        if self._next is None or now >= self._next:
            self._look(now)
            self._next = now + _HOUR
        return self._next - now

    def _look(self, now: float) -> None:
        found = lacking(self.catalogue, self.clock())
        self.metrics.broken_promises.set(len(found.broken))
        self.metrics.uncovered.set(len(found.uncovered))
        said = dict(found.sentences())
        if found.not_covered:
            said[found.not_covered] = found.not_covered
        for key in self._told.keys() - said.keys():
            del self._told[key]
        for key, sentence in said.items():
            if now - self._told.get(key, -_DAY) >= _DAY:
                self._told[key] = now
                self.log.warning(sentence)
