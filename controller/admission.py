"""Lets the steps that were decided through as groups and budgets have it, and tells of what waits for too long.

Called by the cycle, once before each round of acting. What is remembered only saves reading and telling twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

from structlog.typing import FilteringBoundLogger

from controller.actions import Step
from controller.allotting import Allotted, Room, allot
from controller.bandwidths import NOT_LIMITED, Bandwidths
from controller.budgets import Budget
from controller.decide import View, key_of
from controller.places import Place, Places
from controller.pulse import Pulse
from vmkeep.contract.grouping import window_end
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.service.metrics import Metrics
from vmkeep.service.settings import BudgetSettings, ControllerSettings, PacedBudgetSettings

_BEFORE_SNAPSHOTTED = (Mode.INITIALIZE, Mode.INITIALIZED, Mode.SNAPSHOT, Mode.SNAPSHOTTING)


def budgets_of(settings: ControllerSettings) -> dict[Mode, Budget]:
    """The budgets the settings give, by the mode that asks."""
    of = settings.budgets
    kinds = {Mode.SNAPSHOT: of.snapshots, Mode.MERGE: of.merges, Mode.RETAIN: of.retains}
    return {mode: Budget(one.overall, one.per_node, one.per_root, _bandwidths(one)) for mode, one in kinds.items()}


def _bandwidths(settings: BudgetSettings) -> Bandwidths:
    """None of a snapshot: a machine may stand still in it."""
    if not isinstance(settings, PacedBudgetSettings):
        return NOT_LIMITED
    totals = (settings.bandwidth_overall, settings.bandwidth_per_node, settings.bandwidth_per_root)
    return Bandwidths(*(total or 0 for total in totals))


@dataclass
class Admission:
    """What stays the same from turn to turn. `budgets` by the mode that asks."""

    places: Places
    budgets: Mapping[Mode, Budget]
    pulse: Pulse
    log: FilteringBoundLogger
    metrics: Metrics = field(default_factory=Metrics)
    _late: frozenset[tuple[str, str]] = frozenset()
    _held_back: frozenset[tuple[str, str]] = frozenset()
    _told_down: frozenset[str] = frozenset()

    def admit(self, steps: Iterable[Step], view: View, now: datetime) -> tuple[Step, ...]:
        """The steps to take now."""
        places = self.places.of(view.leaves)
        nodes = {name: place.piece.node for name, place in places.items()}
        room = Room(self.budgets, places, self._down(view, nodes, now))
        allotted = allot(tuple(steps), view.leaves, view.changed, room)
        self._tell_late(view, places, allotted, now)
        self._tell_held_back(view, allotted)
        return allotted.steps

    def _tell_held_back(self, view: View, allotted: Allotted) -> None:
        """Restores that wait for another of their group, which may wait for a person: said once."""
        found = {key_of(leaf): leaf for leaf in view.leaves if leaf.is_in_restore and key_of(leaf) in allotted.waiting}
        for key in sorted(found.keys() - self._held_back):
            self.log.info(
                f"{found[key].machine}: the restore of {key[1]} waits ({allotted.waiting[key]}); "
                f"to have it go on at once, remove {Attribute.GROUP} from this leaf"
            )
        self._held_back = frozenset(found)

    def _down(self, view: View, nodes: Mapping[str, str], now: datetime) -> frozenset[str]:
        if not any(budget.limits_anything for budget in self.budgets.values()):
            return frozenset()
        down = self.pulse.down(view.leaves, view.changed, nodes, now)
        for node in sorted(down - self._told_down):
            self.log.warning(f"{node} gives no sign of life: what it was asked for no longer counts against the others")
        for node in sorted(self._told_down - down):
            self.log.info(f"{node} is heard of again, and counts")
        self._told_down = down
        return down

    def _tell_late(self, view: View, places: Mapping[str, Place], allotted: Allotted, now: datetime) -> None:
        zone = self.places.zone
        end = cache(lambda window, schedule, planned: window_end(window, schedule, zone, planned, now))
        found = ((leaf, places.get(leaf.machine.casefold())) for leaf in view.leaves if _is_awaited(leaf, view.only))
        ends = ((leaf, end(place.window, place.schedule, leaf.planned)) for leaf, place in found if place)
        late = {key_of(leaf): leaf for leaf, until in ends if until and now > until}
        for key in sorted(late.keys() - self._late):
            leaf, why = late[key], allotted.waiting.get(key, "")
            waits = f", because of this: {why}" if why else ""
            self.log.warning(
                f"{leaf.machine}: the window of {leaf.timestamp} is over, and its snapshot is not made: "
                f"the leaf stands at {leaf.raw_mode}{waits}; it goes on waiting"
            )
        self._late = frozenset(late)
        self.metrics.waiting.set(len(allotted.waiting))
        self.metrics.late.set(len(late))


def _is_awaited(leaf: Leaf, only: frozenset[str] | None) -> bool:
    """Whether the snapshot of a leaf is still to be made, and is ours to see to."""
    is_ours = only is None or leaf.machine.casefold() in only
    return is_ours and leaf.mode in _BEFORE_SNAPSHOTTED and not leaf.is_failed
