"""Machines in the directory's twin, a controller's cycle over them, and agents played by hand; time passes at will."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from structlog.testing import CapturingLogger

from controller.admission import Admission
from controller.budgets import Budget
from controller.cycle import Cycle
from controller.decide import Bounds
from controller.places import Places
from controller.pulse import Pulse
from controller.verdicts import Verdicts
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.grouping import to_instant
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import Mode, at_work, done
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter, Scope
from vmkeep.service.metrics import Metrics

BOUNDS = Bounds(timedelta(seconds=600), timedelta(seconds=300), 0, timedelta(seconds=60))
TREE = Tree("dc=example,dc=org")
SLOT = "20260101T120000Z"


class CountingStore(MemoryStore):
    """Counts searches, and tells when each entry was written, as a server does."""

    def __init__(self, suffix: str) -> None:
        super().__init__(suffix)
        self.searches = 0
        self.refuses_verdicts = False
        self.clock = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: tuple[str, ...] = ()
    ) -> "list[Entry]":  # type: ignore[override]
        """As the store's; at once."""
        self.searches += 1
        return list(super().search(base, matching, scope, attributes))

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        """As the store's, with the time, unless it is told to refuse this."""
        if self.refuses_verdicts and Attribute.GROUP_CONSISTENCY in changes:
            raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: no write access")
        return super().claim(dn, expected, {**changes, "modifyTimestamp": (self._stamp(),)}, additions, provided)

    def add(self, dn: str, attributes: Attributes) -> bool:
        """As the store's, with the time."""
        return super().add(dn, {**attributes, "modifyTimestamp": (self._stamp(),)})

    def _stamp(self) -> str:
        return f"{self.clock:%Y%m%d%H%M%S}Z"


@dataclass
class ControlledCluster:
    """`budgets` by the mode that asks."""

    budgets: dict[Mode, Budget] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.store = CountingStore(TREE.suffix)
        self.catalogue = Catalogue(self.store, TREE)
        self.metrics = Metrics()
        for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines, TREE.pools, f"ou=configuration,{TREE.top}"):
            self.store.add(dn, {"objectClass": ("organizationalUnit",)})
        self.start_controller()

    def start_controller(self) -> None:
        """A controller that knows nothing yet."""
        self.said = CapturingLogger()
        log = structlog.wrap_logger(self.said, processors=[lambda _log, _level, event: event["event"]])
        always = any(budget.limits_anything for budget in self.budgets.values())
        places = Places(self.catalogue, ZoneInfo("UTC"), always, self.elapsed)
        admission = Admission(places, self.budgets, Pulse(BOUNDS.take_up, self.elapsed), log, self.metrics)
        verdicts = Verdicts(places, BOUNDS, log, self.metrics)
        self.cycle = Cycle(
            self.catalogue,
            BOUNDS,
            log,
            self.metrics,
            clock=lambda: self.now,
            elapsed=self.elapsed,
            admission=admission,
            verdicts=verdicts,
        )

    def elapsed(self) -> float:
        """The controller's own seconds."""
        return self.now.timestamp()

    def add_machine(self, name: str, node: str = "n1", **plan: str) -> None:
        """A machine with its own plan; attributes by the names of Attribute."""
        self.store.add(TREE.machine(name), {"objectClass": (ObjectClass.MACHINE,), Attribute.NODE: (node,)})
        self.catalogue.add_backup_subtree(name)
        self.store.replace(TREE.machine_plan(name), {Attribute[key]: (value,) for key, value in plan.items()})

    def add_leaves(self, *machines: str, slot: str = SLOT) -> None:
        """Leaves of one time, that are complete."""
        for machine in machines:
            self.catalogue.add_leaf(machine, slot, to_timestamp(self.now))
        self.cycle.complete |= {slot}

    def turn(self, seconds: float = 1) -> None:
        """Time passes, then the controller turns once."""
        self.now += timedelta(seconds=seconds)
        self.store.clock = self.now
        self.cycle.turn()

    def begin(self, *machines: str) -> None:
        """Agents take up what they were asked for."""
        for machine in machines:
            leaf = self.leaf(machine)
            assert leaf.mode is not None
            self.catalogue.claim(leaf, at_work(leaf.mode), Report(NOW))

    def end(self, machine: str, return_value: int = 0, instant: float | None = 0.0) -> None:
        """An agent ends what it is at; `instant` in seconds from now."""
        leaf = self.leaf(machine)
        assert leaf.mode is not None
        if return_value:
            self.catalogue.claim(leaf, leaf.mode, Report(to_timestamp(self.now), return_value, "no"))
            return
        known = instant is not None and leaf.mode is Mode.SNAPSHOTTING
        extra = {Attribute.INSTANT: (to_instant(self.now + timedelta(seconds=instant or 0)),)} if known else {}
        self.catalogue.claim(leaf, done(leaf.mode), Report(to_timestamp(self.now), extra=extra))

    def leaf(self, machine: str, slot: str = SLOT) -> Leaf:
        """A machine's leaf as it stands."""
        leaf = self.catalogue.leaf(TREE.leaf(machine, slot))
        assert leaf is not None
        return leaf

    def modes(self, *machines: str) -> list[str]:
        """The modes of their leaves."""
        return [self.leaf(machine).raw_mode for machine in machines]

    def lines(self) -> list[str]:
        """What the controller has said."""
        return [str(call.args[0]) for call in self.said.calls]
