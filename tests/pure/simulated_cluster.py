"""A cluster in which time passes at will: machines with plans, agents that need time, a controller with outages."""

import random
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from structlog.testing import CapturingLogger

from controller.cycle import read_view
from controller.decide import Bounds
from controller.lookout import Lookout
from controller.schedule import Scheduler
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.memory import MemoryStore

BOUNDS = Bounds(timedelta(seconds=600), timedelta(seconds=300), 3, timedelta(seconds=60))
TREE = Tree("dc=example,dc=org")
CRON = (
    Attribute.CRON_MINUTE,
    Attribute.CRON_HOUR,
    Attribute.CRON_DAY,
    Attribute.CRON_MONTH,
    Attribute.CRON_DAY_OF_WEEK,
)


class SimulatedCluster:
    """`added` are all leaves ever added, by machine: the timestamp, when, and what the leaf said."""

    def __init__(self, zone: str, now: datetime) -> None:
        self.now = now
        self.zone = ZoneInfo(zone)
        self.catalogue = Catalogue(MemoryStore(TREE.suffix), TREE)
        self.added: dict[str, list[tuple[str, datetime, str]]] = {}
        self._ends: dict[str, datetime] = {}
        configuration = f"ou=configuration,{TREE.top}"
        for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines, TREE.pools, configuration):
            self.catalogue.store.add(dn, {"objectClass": ("organizationalUnit",)})
        self.start_controller()

    def add_machine(self, name: str, cron: str | None, node: str | None = "n1", **plan: str) -> None:
        """A machine with its own plan; attributes by the names of Attribute."""
        attributes = {"objectClass": (ObjectClass.MACHINE,), **({Attribute.NODE: (node,)} if node else {})}
        self.catalogue.store.add(TREE.machine(name), attributes)
        self.catalogue.add_backup_subtree(name)
        fields = {attribute: (value,) for attribute, value in zip(CRON, cron.split(), strict=True)} if cron else {}
        own = {Attribute[key]: (value,) for key, value in {"CRON_ACTIVE": "TRUE", **plan}.items()}
        self.catalogue.store.replace(TREE.machine_plan(name), {**fields, **own})
        self.added[name] = []

    def start_controller(self) -> None:
        """A controller that has only just been started and knows nothing."""
        self.said = CapturingLogger()
        log = structlog.wrap_logger(self.said, processors=[lambda _log, _level, event: event["event"]])
        self.scheduler = Scheduler(
            Lookout(self.catalogue, self.zone), BOUNDS, log, lambda: self.now, self._leaves, lambda _round: None
        )

    def turn(self) -> None:
        """One turn of the controller; then agents take up what is new."""
        self.scheduler.turn()
        for leaf in self._leaves():
            known = self.added[leaf.machine]
            if leaf.timestamp not in [timestamp for timestamp, _, _ in known[-3:]]:
                known.append((leaf.timestamp, self.now, leaf.message))

    def lines(self) -> list[str]:
        """What the controller has said."""
        return [str(call.args[0]) for call in self.said.calls if call.method_name != "debug"]

    def end_leaves(self, chance: random.Random) -> None:
        """Agents end what they began: some at once, some late, some badly; old leaves go."""
        for leaf in self._leaves():
            minutes = chance.choice([1, 5, 40, 90])
            due = self._ends.setdefault(leaf.dn, self.now + timedelta(minutes=minutes))
            if self.now >= due:
                report = Report(to_timestamp(self.now), chance.choice([0, 0, 0, 100]))
                self.catalogue.claim(leaf, Mode.FINISHED, report)
                for older in self.catalogue.leaves(leaf.machine):
                    if older.mode is Mode.FINISHED and older.timestamp < leaf.timestamp:
                        self.catalogue.store.delete(older.dn)

    def busy(self) -> set[str]:
        """The machines that have a leaf in flight."""
        return {leaf.machine for leaf in self._leaves()}

    def _leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in read_view(self.catalogue).leaves if leaf.is_in_flight)
