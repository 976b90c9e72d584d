"""Machines on a belt: at each turn every one is held at work in another mode, and what ends well is one mode further.

All ways are read off the table of modes. A mode whose work cannot be held, or that no way leads to, has no cell.
"""

import contextlib
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import libvirt

from lab import services
from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from lab.processes import Process, stop
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.plain import Plain
from tests.faults.faulty_filesystem import Faulty
from tests.faults.full_directory import FullDirectory
from tests.faults.held_agent import clock_of, place_of, reached
from tests.faults.invariants import is_up
from tests.faults.test_restore_killed import copied_set
from tests.slapd.unreliable_wire import UnreliableWire
from vmkeep.contract.modes import ROWS, Circle, Kind, Mode, asked, done, modes

LIMIT = 150.0
AT_WORK = modes(kind=Kind.AT_WORK)
# After which line of its journal (a pattern) a mode's work is held: where it would hurt most. One comes, by method.
HOLDS: dict[Mode, tuple[str, ...]] = {
    Mode.SNAPSHOTTING: ("ended save", "ended freeze"),  # the machine stands still, or writes to an overlay
    Mode.MERGING: ("began merge vda", "ended copy vda"),
    Mode.RETAINING: ("ended carry *.qcow2",),  # nothing is published yet
    Mode.UNRETAINING_SMALL_FILES: ("began entry",),
    Mode.UNRETAINING_LARGE_FILES: ("began fetch *.qcow2*",),
    Mode.RESTORING: ("ended stop",),  # the machine stands still
    Mode.DELETING: ("began remove",),
}
METHODS = ("save", "disk")
_NEW, _MACHINE = Mode.INITIALIZED, re.compile(r",sstVirtualMachine=([^,]+),", re.IGNORECASE)
_AGAIN = 3
Leaf = dict[str, list[str]]


def way(start: Mode, goal: Mode) -> tuple[Mode, ...]:
    """The modes somebody has to write to bring a leaf from rest to rest; INITIALIZED stands for a new leaf."""
    waiting: deque[tuple[Mode, tuple[Mode, ...]]] = deque([(start, ())])
    seen = {start}
    while waiting:
        here, written = waiting.popleft()
        if here is goal:
            return written
        for mode, there in _moves(here):
            if there not in seen:
                seen.add(there)
                waiting.append((there, (*written, mode)))
    raise LookupError(f"no way leads from {start} to {goal}")


def _moves(here: Mode) -> Iterator[tuple[Mode, Mode]]:
    """(what is written, where it then comes to rest)."""
    for working in AT_WORK:
        if here in ROWS[asked(working)].follows:
            yield asked(working), done(working)
    is_ended_early = ROWS[here].circle is Circle.BACKUP and here is not Mode.RETAINED  # and is no backup then
    if here in ROWS[Mode.FINISHED].follows and not is_ended_early:
        yield Mode.FINISHED, Mode.FINISHED
    if here in (Mode.FINISHED, Mode.DELETED):
        yield _NEW, _NEW


def doorstep(working: Mode) -> Mode:
    """Where a leaf rests before it is asked for this work."""
    return ROWS[asked(working)].follows[0]


@dataclass
class Place:
    """Where one machine is: the leaf that goes round, and the one its work is asked for at this turn."""

    machine: Machine
    method: str
    leaf: str = ""
    asked: str = ""
    working: Mode = Mode.SNAPSHOTTING
    tries: int = 0


@dataclass
class Belt:
    """The machines of one node, and its agent, which a test holds and which sees the directory through a wire."""

    lab: Lab
    folder: Path
    agent_settings: Path
    wire: UnreliableWire
    backup: Faulty
    controller_settings: Path = Path()
    places: dict[str, Place] = field(default_factory=dict)
    turns: int = 0
    libvirtd: Process | None = None
    _newest: float = 0.0
    _definitions: dict[str, str] = field(default_factory=dict)
    _second: Process | None = None

    def __post_init__(self) -> None:
        """It knows the directory from the start."""
        self.full_directory = FullDirectory(self.lab)

    @property
    def plain(self) -> Plain:
        return Plain(self.lab)

    @property
    def node(self) -> str:
        return next(iter(self.lab.nodes))

    # machines

    def fill(self, spec: MachineSpec, number: int = len(AT_WORK)) -> None:
        """Machines, one for each mode of work."""
        machines = self.lab.add_machines([spec] * number)
        for number, machine in enumerate(machines):
            method = METHODS[number % len(METHODS)]
            self.plain.add_backup_subtree(machine.name, sstBackupNumberOfIterations="90")
            dn = self.lab.tree.machine_plan(machine.name)
            self.plain.modify(dn, "add objectClass vmkeepPlan", f"add vmkeepMethod {method}")
            self.places[machine.name] = Place(machine, method)
            domain = machine.node.domain(machine.name)
            self._definitions[machine.name] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    def turn(self) -> None:
        """Every machine one mode further, and on its doorstep."""
        for number, place in enumerate(self.places.values()):
            place.working = AT_WORK[(number + self.turns) % len(AT_WORK)]
            place.tries = 0
        self.turns += 1
        self.switch_all_on()
        self._bring_all_to_their_doorsteps()
        for place in self.places.values():
            place.asked = self._oldest_other(place) if place.working is Mode.DELETING else place.leaf

    def switch_all_on(self) -> None:
        """Start what is off; returns when every machine counts."""
        self.libvirtd = self.lab.nodes[self.node].libvirtd
        for place in self.places.values():
            domain = place.machine.node.domain(place.machine.name)
            if domain.isActive() and not is_up(place.machine):
                domain.destroy()  # lost by the fault before, which has been told
            if not domain.isActive():
                domain.create()
        for place in self.places.values():
            self.lab.wait_for_count(place.machine.name, 2, LIMIT)

    def define_again(self) -> None:
        """Define what is defined no more: as it runs, or as it was at first."""
        for name, place in self.places.items():
            connection = place.machine.node.connection()
            known = {each.name(): each for each in connection.listAllDomains()}
            if name not in known:
                connection.defineXML(self._definitions[name])
            elif not known[name].isPersistent():
                connection.defineXML(known[name].XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def let_go_who_waited_for_room(self) -> None:
        """As an admin does with machines that QEMU paused because an image could not grow."""
        for name, place in self.places.items():
            with contextlib.suppress(libvirt.libvirtError):
                domain = place.machine.node.domain(name)
                if domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
                    domain.resume()

    def _bring_all_to_their_doorsteps(self) -> None:
        waiting = list(self.places.values())

        def are_there() -> bool:
            leaves = self.leaves()
            waiting[:] = [place for place in waiting if not self._is_there(place, leaves)]
            return not waiting

        goals = {name: place.working.value for name, place in self.places.items()}
        until(f"each machine to be at the doorstep of its work: {goals}", are_there, LIMIT, 0.05)

    def _is_there(self, place: Place, leaves: dict[tuple[str, str], Leaf]) -> bool:
        """Whether it is; where it rests elsewhere it is moved on."""
        leaf = leaves.get(_key(place))
        if leaf is not None and not is_at_rest(leaf):
            return False
        here = Mode.DELETED if leaf is None else mode_of(leaf)
        if leaf is not None and is_failed(leaf):
            self._mend(place, here)
            return False
        written = way(here, doorstep(place.working))
        if written:
            self._write(place, written[0])
        return not written

    def _mend(self, place: Place, failed: Mode) -> None:
        """Out of a failure as an admin goes: back out, ask again, or let the leaf go."""
        dn = self.plain.leaf_dn(place.machine.name, place.leaf)
        place.tries += 1
        self.plain.modify(dn, "replace sstProvisioningReturnValue 0")
        if failed in ROWS[Mode.FINISHED].follows:
            self.plain.finish(place.machine.name, place.leaf)
        elif failed is not Mode.SNAPSHOTTING and place.tries <= _AGAIN:
            self.plain.ask(place.machine.name, place.leaf, asked(failed))
        else:
            self.plain.delete_tree(dn)

    def _write(self, place: Place, mode: Mode) -> None:
        name = place.machine.name
        if mode is _NEW:
            place.leaf = self.unused_timestamp()
            self.plain.add_leaf(name, place.leaf)
        elif mode is Mode.FINISHED:
            self.plain.finish(name, place.leaf)
        else:
            self.plain.ask(name, place.leaf, mode)

    def unused_timestamp(self) -> str:
        """Of now, or the second after the newest there is."""
        self._newest = max(time.time(), self._newest + 1)
        return datetime.fromtimestamp(self._newest, UTC).strftime("%Y%m%dT%H%M%SZ")

    def _oldest_other(self, place: Place) -> str:
        """A good backup that may go."""
        name = place.machine.name
        others = [stamp for machine, stamp in self.leaves() if machine == name and stamp != place.leaf]
        if others:
            return min(others)
        doomed = "20200101T000000Z"
        copied_set(sets.directory_of(place.machine, place.leaf), doomed)
        self.plain.add_leaf(name, doomed, "finished")
        return doomed

    # the agent

    def start_agent(self) -> Process:
        """One that can be held."""
        command: list[str | Path] = [sys.executable, "-m", "tests.faults.held_agent", self.folder]
        return self.lab.serve_agent(self.node, [*command, "--settings", self.agent_settings, "serve"])

    def start_controller(self) -> None:
        """A real one, unless it runs."""
        if self.lab.process("controller") is None:
            program = services.script("vmkeep-controller")
            self.lab.serve_controller([program, "--settings", self.controller_settings, "serve"])

    def agent(self) -> Process | None:
        """It, where it runs."""
        return self.lab.process(f"nodeagent {self.node}")

    def start_second_agent(self) -> None:
        """Another one of the same node, which should not be."""
        command: list[str | Path] = [services.script("vmkeep-nodeagent"), "--settings", self.agent_settings, "serve"]
        self._second = services.serve("second agent", command, self.folder / "second.log", lambda _process: None)

    def end_second_agent(self) -> None:
        """It dies."""
        if self._second is not None:
            stop([self._second], grace=0)

    def shift_clock(self, seconds: int) -> None:
        """What the agent takes for the time, from now on."""
        clock_of(self.folder).write_text(str(seconds))

    def signal_agent(self, number: int) -> None:
        """Send it a signal."""
        if (agent := self.agent()) is not None:
            agent.kill(number)

    def hold(self, elsewhere: Mapping[Mode, tuple[str, ...]] = MappingProxyType({})) -> None:
        """Ask for all the work of this turn; returns when all of it is held, in some modes elsewhere than always."""
        for place in self.places.values():
            patterns = elsewhere.get(place.working, HOLDS[place.working])
            self._file(place).write_text("\n".join(patterns))
            self.plain.ask(place.machine.name, place.asked, asked(place.working))
        for place in self.places.values():
            until(f"{place.machine.name} to be held at {place.working}", lambda p=place: self._is_held(p), LIMIT)

    def _is_held(self, place: Place) -> bool:
        if reached(self._file(place)).exists():
            return True
        leaf = self.leaves().get((place.machine.name, place.asked))
        assert leaf is None or mode_of(leaf) in (asked(place.working), place.working), f"it was not held: {leaf}"
        assert leaf is None or not is_failed(leaf), leaf
        return False

    def release(self) -> None:
        """Let all go on."""
        for place in self.places.values():
            self._file(place).unlink(missing_ok=True)
            reached(self._file(place)).unlink(missing_ok=True)

    def _file(self, place: Place) -> Path:
        return place_of(self.folder, place.machine.name, place.working)

    # the directory

    def leaves(self) -> dict[tuple[str, str], Leaf]:
        """Every leaf there is, by machine and timestamp."""
        found = self.lab.directory.search(self.lab.tree.machines, "(objectClass=sstProvisioning)")
        return {(_MACHINE.search(leaf["dn"][0])[1], leaf["ou"][0]): leaf for leaf in found}  # type: ignore[index]

    def asked_leaf(self, place: Place) -> Leaf | None:
        """The leaf of this turn's work, None where it is gone."""
        return self.leaves().get((place.machine.name, place.asked))

    def wait_until_rest(
        self, working: frozenset[Mode] = frozenset(AT_WORK), limit: float = LIMIT
    ) -> dict[str, Leaf | None]:
        """What became of each machine's work of this turn, in these modes."""

        def resting() -> dict[str, Leaf | None] | None:
            leaves = self.leaves()
            found = {
                name: leaves.get((name, place.asked)) for name, place in self.places.items() if place.working in working
            }
            return found if all(leaf is None or is_at_rest(leaf) for leaf in found.values()) else None

        return until(f"work to end ({', '.join(working)}): {self._told}", resting, limit, 0.2)

    @property
    def _told(self) -> dict[str, str]:
        return {name: f"{place.working} {place.asked}" for name, place in self.places.items()}


def _key(place: Place) -> tuple[str, str]:
    return place.machine.name, place.leaf


def mode_of(leaf: Leaf) -> Mode:
    mode = Mode.read(leaf["sstProvisioningMode"][0])
    assert mode is not None, leaf
    return mode


def is_failed(leaf: Leaf) -> bool:
    return leaf["sstProvisioningReturnValue"] != ["0"]


def is_at_rest(leaf: Leaf) -> bool:
    """Whether nobody is at work on it, nor asked to be."""
    return is_failed(leaf) or ROWS[mode_of(leaf)].kind in (Kind.DONE, Kind.TERMINAL)
