"""Asks a lab's agents for the steps of a backup, and notes when each was seen to be done. Used by every row.

It is the leaves' writer, as the controller is, and an independent reader of what the agents write.
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

from lab.cluster import Lab
from lab.errors import LabError
from lab.machines import Machine
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode, at_work, done
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import LEAVES, Catalogue, Report
from vmkeep.directory.port import Claim
from vmkeep.service.settings import ControllerSettings, load

STEP_LIMIT = 600.0
_LOOK_ANYWAY = 1.0


@dataclass(frozen=True)
class Backups:
    """One writer and reader. `changes` holds the host's monotonic time of each change a watch told of."""

    lab: Lab
    catalogue: Catalogue
    changes: "SimpleQueue[float]"
    seconds: Iterator[int]

    def new_leaf(self, machine: str) -> Leaf:
        """A leaf that waits for its snapshot; leaves of one run never share their time."""
        timestamp = to_timestamp(datetime.now(UTC) - timedelta(hours=12) + timedelta(seconds=next(self.seconds)))
        self.catalogue.add_backup_subtree(machine)
        if not self.catalogue.add_leaf(machine, timestamp, timestamp):
            raise LabError(f"{machine} has a leaf {timestamp} already")
        return self.move(self.read(self.lab.tree.leaf(machine, timestamp)), Mode.INITIALIZED)

    def choose(self, machine: str, method: Method) -> None:
        """Have the machine's next backups made with a method: a plan of its own says so."""
        self.catalogue.add_backup_subtree(machine)
        classes = ("top", ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.BACKUP, ObjectClass.PLAN)
        lines = [f"dn: {self.lab.tree.machine_plan(machine)}", "changetype: modify", "replace: objectClass"]
        lines += [*(f"objectClass: {name}" for name in classes), "-"]
        lines += [f"replace: {Attribute.METHOD}", f"{Attribute.METHOD}: {method}", ""]
        self.lab.directory.modify("\n".join(lines))

    def begin(self, machine: str, method: Method) -> str:
        """A leaf that waits for a snapshot with this method; its DN."""
        self.choose(machine, method)
        return self.new_leaf(machine).dn

    def snapshot(self, dn: str, method: Method) -> float:
        """Have a snapshot made with this method and no other; the seconds that took."""
        taken = self.step(dn, Mode.SNAPSHOT)
        self.refuse_other(dn, method)
        return taken

    def refuse_other(self, dn: str, method: Method) -> None:
        """LabError where the agent used another method: its figures would bear the wrong name."""
        entry = self.catalogue.store.read(dn)
        used = entry.attributes.get(Attribute.METHOD, ()) if entry else ()
        if tuple(used) != (method.value,):
            raise LabError(f"{dn} was to be made with method {method}, and says {', '.join(used) or 'nothing of it'}")

    def read(self, dn: str) -> Leaf:
        """A leaf as it is now."""
        leaf = self.catalogue.leaf(dn)
        if leaf is None:
            raise LabError(f"{dn} is gone, or is no leaf")
        return leaf

    def move(self, leaf: Leaf, mode: Mode, state: str = NOW) -> Leaf:
        """Claim a leaf for a mode; nobody else may have moved it."""
        if self.catalogue.claim(leaf, mode, Report(state)) is not Claim.WON:
            raise LabError(f"{leaf.dn} was moved by somebody else while it was to become {mode}")
        return replace(leaf, raw_mode=mode.value, state=state, return_value=0)

    def step(self, dn: str, asked: Mode) -> float:
        """Have one step done; the seconds from asking for it until it was seen to be done."""
        leaf = self.read(dn)
        begun = time.monotonic()
        self.move(leaf, asked)
        return self.wait(dn, done(at_work(asked))) - begun

    def wait(self, dn: str, mode: Mode, limit: float = STEP_LIMIT) -> float:
        """The time at which a leaf was seen in a mode; LabError where it failed instead, or took too long."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            leaf = self.catalogue.leaf(dn)
            if leaf is not None and leaf.mode is mode:
                return time.monotonic()
            if leaf is not None and leaf.is_failed:
                raise LabError(f"{dn} failed at {leaf.raw_mode} with {leaf.return_value}: {leaf.message}")
            self.next_change()
        raise LabError(f"waited {limit:g} s in vain: {dn} to become {mode}")

    def next_change(self, limit: float = _LOOK_ANYWAY) -> float | None:
        """When the next change was told of, None after `limit` seconds without one."""
        try:
            return self.changes.get(timeout=limit)
        except Empty:
            return None

    def finish(self, dn: str, *asked: Mode) -> None:
        """Have the steps done that are left, and end the leaf; none of it measured."""
        for mode in asked:
            self.step(dn, mode)
        self.move(self.read(dn), Mode.FINISHED, to_timestamp(datetime.now(UTC)))


@contextmanager
def backups_of(lab: Lab) -> Iterator[Backups]:
    """Start the lab's agents, and watch every leaf."""
    for node in lab.nodes:
        lab.start_agent(node)
    store = open_store(load(ControllerSettings, lab.controller_settings).directory)
    changes: SimpleQueue[float] = SimpleQueue()
    try:
        with store.watch(lab.tree.machines, LEAVES, lambda: changes.put(time.monotonic())):
            backups = Backups(lab, Catalogue(store, lab.tree), changes, itertools.count())
            if backups.next_change(limit=10) is None:
                raise LabError("the directory does not notify of changes")
            yield backups
    finally:
        store.close()


def retained(machine: Machine, dn: str) -> Path:
    """Where a leaf's set lies in retain."""
    return _set_of(machine.node.retain, machine, dn)


def backed_up(machine: Machine, dn: str) -> Path:
    """Where a leaf's finished set lies."""
    return _set_of(machine.node.backup, machine, dn)


def _set_of(root: Path, machine: Machine, dn: str) -> Path:
    timestamp = dn.partition(",")[0].partition("=")[2]
    return root / machine.spec.storage / machine.node.storage_pool / machine.name / timestamp
