"""A machine whose backups come and go for as long as one likes: the controller is real, over the twin in memory.

Agents are played: they delete what is asked for, unless it is held. Beside it `expected` says, record by record, what
ought to be left.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from structlog.testing import CapturingLogger

from controller.cycle import Cycle
from controller.decide import Bounds
from controller.pruning import Pruner
from tests.pure.slow_retention import is_kept
from vmkeep.contract.leaf import NOW
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.retention import Policy
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.memory import MemoryStore

BOUNDS = Bounds(timedelta(seconds=600), timedelta(seconds=300), 3, timedelta(seconds=60))
TREE = Tree("dc=example,dc=org")
WEEK = timedelta(days=7)


@dataclass
class Record:
    """What is known of one backup: when it was planned, when it failed, until when it is held, whether it is in use."""

    planned: datetime
    failed: datetime | None = None
    held_until: datetime | None = None
    in_use: str = ""

    @property
    def is_good(self) -> bool:
        return self.failed is None and self.in_use != "snapshotting"


def expected(records: list[Record], policy: Policy, now: datetime, zone: ZoneInfo) -> list[Record]:
    """What is left of them."""
    good = [record.planned for record in records if record.is_good]
    if any(record.in_use for record in records):
        return records
    return [record for record in records if _stays(record, good, policy, now, zone)]


def _stays(record: Record, good: list[datetime], policy: Policy, now: datetime, zone: ZoneInfo) -> bool:
    if record.held_until and record.held_until > now:
        return True
    if record.failed:
        return not good or record.planned > max(good) or now < record.failed + WEEK
    return is_kept(record.planned, good, policy, zone)


class KeptMachine:
    """The machine `web` and a controller."""

    def __init__(self, now: datetime, zone: ZoneInfo, **plan: str) -> None:
        self.now = now
        self.zone = zone
        self.catalogue = Catalogue(MemoryStore(TREE.suffix), TREE)
        configuration = f"ou=configuration,{TREE.top}"
        for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines, TREE.pools, configuration):
            self.catalogue.store.add(dn, {"objectClass": ("organizationalUnit",)})
        self.add_machine("web", **plan)
        self.start_controller()

    def add_machine(self, name: str, **plan: str) -> None:
        attributes = {"objectClass": (ObjectClass.MACHINE,), Attribute.NODE: ("n1",)}
        self.catalogue.store.add(TREE.machine(name), attributes)
        self.catalogue.add_backup_subtree(name)
        self.plan(name, **plan)

    def plan(self, name: str, **plan: str) -> None:
        values = {Attribute[key]: (value,) for key, value in plan.items()}
        self.catalogue.store.replace(TREE.machine_plan(name), values)

    def start_controller(self) -> None:
        """One that has only just been started and knows nothing."""
        self.said = CapturingLogger()
        log = structlog.wrap_logger(self.said, processors=[lambda _log, _level, event: event["event"]])
        self.cycle = Cycle(self.catalogue, BOUNDS, log, clock=lambda: self.now, elapsed=self._elapsed)
        self.pruner = Pruner(self.catalogue, self.zone, log, lambda: self.now, elapsed=self._elapsed)

    def _elapsed(self) -> float:
        return self.now.timestamp()

    def lines(self) -> list[str]:
        """What the controller has said."""
        return [str(call.args[0]) for call in self.said.calls]

    def put(self, record: Record, name: str = "web") -> None:
        """Its leaf as it is to stand; a new one ends at `retained`, for the controller to finish."""
        dn, timestamp = TREE.leaf(name, to_timestamp(record.planned)), to_timestamp(record.planned)
        mode, state, code = Mode.RETAINED, to_timestamp(self.now), "0"
        if self.catalogue.leaf(dn) is None:
            self.catalogue.add_leaf(name, timestamp, state)
        else:
            mode = Mode.FINISHED
        if record.failed:
            mode, state, code = Mode.SNAPSHOTTING, to_timestamp(record.failed), "47"
        elif record.in_use:
            mode, state = Mode(record.in_use), NOW if record.in_use == "snapshotting" else state
        changes = {Attribute.MODE: (mode,), Attribute.STATE: (state,), Attribute.RETURN_VALUE: (code,)}
        changes[Attribute.MANIFEST_DIGEST] = ("blake3:0",) if record.is_good else ()
        hold = f"{to_timestamp(record.held_until)} why" if record.held_until else ""
        changes[Attribute.HOLD] = (hold,) if hold else ()
        self.catalogue.store.replace(dn, changes)

    def turn(self) -> None:
        """One turn of the controller."""
        self.cycle.turn()
        while self.pruner.turn(self.cycle.ended_well) == 0.0:
            pass

    def delete_what_is_asked(self) -> None:
        """As agents do."""
        for leaf in list(self.catalogue.leaves()):
            if leaf.mode is Mode.DELETE:
                self.catalogue.claim(leaf, Mode.DELETED, Report(to_timestamp(self.now)))

    def left(self, name: str = "web") -> list[str]:
        """The timestamps of what is there."""
        return sorted(leaf.timestamp for leaf in self.catalogue.leaves(name))
