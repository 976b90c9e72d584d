"""Seeded random sequences: machines are backed up, restored and pruned by hand, and several faults strike meanwhile.

One cycle after the other; after each everything is let go, comes to rest, and all that must hold is looked at.
"""

import contextlib
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import services
from lab.errors import LabError
from tests.cluster import sets
from tests.faults.belt import Belt, Leaf, is_at_rest, is_failed, mode_of
from tests.faults.catalogue import CATALOGUE, Fault
from tests.faults.invariants import OFF, RUNNING, Story, World, told
from tests.faults.violation import Violation
from vmkeep.contract.modes import ROWS, Mode

METHODS = ("save", "live", "disk")
GROUP, START = "vmkeepGroup", "sstVirtualizationVirtualMachineSequenceStart"
_LONGEST_REST, _LONGEST_FAULT, _SETTLED = 300.0, 4.0, 12.0
# What hits a leaf that a cycle has no hold on, or leaves what only a person can put right, is for the matrix alone.
_NOT_HERE = ("people",)


def _kill_controller(belt: Belt) -> None:
    belt.lab.kill_controller()


def _start_controller(belt: Belt) -> None:
    belt.start_controller()


FAULTS = (
    *(fault for fault in CATALOGUE if fault.part not in _NOT_HERE),
    Fault("controller killed", "controller", _kill_controller, _start_controller),
)


@dataclass
class Cycle:
    """What was done in one: an operation for each machine, and faults with the moment and the length of each.

    `starts`: the order in which they run on where they are a group, None where they are not.
    """

    number: int
    work: dict[str, str]
    starts: dict[str, str] | None
    faults: list[tuple[Fault, float, float]]

    def __str__(self) -> str:
        struck = ", ".join(f"{fault.name} at {at:.1f} s for {length:.1f} s" for fault, at, length in self.faults)
        worked = ", ".join(f"{machine} {work}" for machine, work in self.work.items())
        group = "" if self.starts is None else f" as a group, started {', '.join(map(str, self.starts.values()))}"
        return f"cycle {self.number}: {worked}{group}; {struck}"


@dataclass
class Wandering:
    """A belt on which agent and controller serve. `say` takes one line."""

    belt: Belt
    say: Callable[[str], None] = print
    struck: Counter[str] = field(default_factory=Counter)
    asked: dict[str, str] = field(default_factory=dict)

    def cycle(self, number: int, chance: random.Random) -> list[Violation]:
        """Choose, begin, strike, heal, rest, look."""
        belt, world = self.belt, World(self.belt.lab)
        self._settle()
        leaves = belt.leaves()
        work = {name: self._chosen(name, leaves, chance) for name in belt.places}
        faults = self._chosen_faults(chance)
        methods = {name: chance.choice(METHODS) for name in belt.places}
        starts = self._chosen_starts(chance)
        world.look(*(place.machine for place in belt.places.values()))
        self._plan(methods, starts)
        running = self._begin(work, leaves)
        self.say(str(Cycle(number, {name: f"{did} ({methods[name]})" for name, did in work.items()}, starts, faults)))
        try:
            self._strike(faults)
        finally:
            ended = self._rest(running)
            running.kill()
            running.wait(20)
        found = [Violation(name, "I3", f"its leaf does not come to rest: {leaf}") for name, leaf in ended.items()]
        takes_power = any(fault.takes_power for fault, *_ in faults)
        stories = {name: self._story(name, did, takes_power=takes_power) for name, did in work.items()}
        return found + self._not_up(stories) + world.violations(stories)

    def _chosen(self, name: str, leaves: dict[tuple[str, str], Leaf], chance: random.Random) -> str:
        may = {"restore": bool(_restorable(name, leaves)), "delete": len(_good(name, leaves)) > 1}
        return chance.choice(["backup", "backup", *(what for what, may_be in may.items() if may_be)])

    def _chosen_faults(self, chance: random.Random) -> list[tuple[Fault, float, float]]:
        faults = chance.sample(FAULTS, chance.randint(1, 3))
        return [(fault, chance.uniform(0, 3), chance.uniform(0.2, _LONGEST_FAULT)) for fault in faults]

    def _chosen_starts(self, chance: random.Random) -> dict[str, str] | None:
        """Every other cycle the machines are a group; a number of "" is none."""
        numbers = {name: chance.choice(["1", "2", "3", ""]) for name in self.belt.places}
        return numbers if chance.random() < 0.5 else None

    def _plan(self, methods: dict[str, str], starts: dict[str, str] | None) -> None:
        for name, method in methods.items():
            group, number = ("Belt", starts[name]) if starts else ("", "")
            self.belt.plain.modify(
                self.belt.lab.tree.machine_plan(name),
                f"replace vmkeepMethod {method}",
                "replace vmkeepStartWait 5",
                *(f"replace {what} {value}".rstrip() for what, value in ((GROUP, group), (START, number))),
            )

    def _begin(self, work: dict[str, str], leaves: dict[tuple[str, str], Leaf]) -> "subprocess.Popen[bytes]":
        """Ask for everything; what runs is the controller's command for the backups."""
        for name, did in work.items():
            found = _restorable(name, leaves)[-1:] if did == "restore" else _good(name, leaves)[:1]
            self.asked[name] = "" if did == "backup" else found[0]
            if did != "backup":
                mode = Mode.UNRETAIN_SMALL_FILES if did == "restore" else Mode.DELETE
                self.belt.plain.ask(name, self.asked[name], mode)
        backups = [name for name, did in work.items() if did == "backup"]
        program = [
            str(services.script("vmkeep-controller")),
            "--settings",
            str(self.belt.controller_settings),
            "run",
            "--timeout",
            "240",
        ]
        with (self.belt.folder / "run.log").open("ab") as log:
            return subprocess.Popen([*program, *(backups or ["nobody"])], stdout=log, stderr=log)

    def _strike(self, faults: list[tuple[Fault, float, float]]) -> None:
        """Each at its moment, and healed after its length; also where one heals what another has struck."""
        began = time.monotonic()
        moments = [(at, fault, fault.strike) for fault, at, _ in faults]
        moments += [(at + length, fault, fault.heal) for fault, at, length in faults]
        struck: set[str] = set()  # names of faults of the directory that last
        try:
            for at, fault, act in sorted(moments, key=lambda each: each[0]):
                while time.monotonic() < began + at:
                    if not struck:  # one that hangs would hold up what heals it
                        self._go_on_with_restores()
                    time.sleep(0.05)
                struck ^= {fault.name} if fault.part == "directory" else set()
                with contextlib.suppress(LabError):
                    act(self.belt)
        finally:
            self._heal(faults)

    def _heal(self, faults: list[tuple[Fault, float, float]]) -> None:
        belt = self.belt
        for fault, *_ in faults:
            self.struck[fault.name] += 1
            with contextlib.suppress(LabError):
                fault.heal(belt)
        if belt.lab.process("slapd") is None:
            belt.lab.start_directory()
        if belt.lab.nodes[belt.node].libvirtd is None:
            belt.lab.nodes[belt.node].restart_libvirtd()
        belt.end_second_agent()
        if belt.agent() is None:
            belt.start_agent()
        _start_controller(belt)

    def _go_on_with_restores(self) -> None:
        """The admin's part: having looked at the small files, ask for the large ones."""
        try:
            leaves = self.belt.leaves()
        except LabError:
            return  # the directory is away
        for (name, stamp), leaf in leaves.items():
            if mode_of(leaf) is Mode.UNRETAINED_SMALL_FILES and not is_failed(leaf):
                with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                    self.belt.plain.ask(name, stamp, Mode.UNRETAIN_LARGE_FILES)

    def _rest(self, running: "subprocess.Popen[bytes]") -> dict[str, Leaf]:
        """Until the command has seen its backups end and nothing is written any more; what does not come to rest."""
        deadline, since, before = time.monotonic() + _LONGEST_REST, time.monotonic(), ""
        restless: dict[str, Leaf] = {}
        while time.monotonic() < deadline:
            self._start_what_died()
            self._go_on_with_restores()
            leaves = self.belt.leaves()
            now = str(sorted((key, leaf) for key, leaf in leaves.items()))
            if now != before:
                before, since = now, time.monotonic()
            restless = {key[0]: leaf for key, leaf in leaves.items() if not _is_over(leaf)}
            is_over = running.poll() is not None and not restless
            if is_over and time.monotonic() - since > (_SETTLED if any(map(is_failed, leaves.values())) else 1):
                return {}
            time.sleep(0.2)
        return restless

    def _start_what_died(self) -> None:
        """As the service manager does; an agent that dies by itself is no fault of ours, and is told."""
        if self.belt.agent() is None:
            self.struck["agent died by itself"] += 1
            self.say("  the agent died by itself, and is started again")
            self.belt.start_agent()

    def _not_up(self, stories: dict[str, Story]) -> list[Violation]:
        found = []
        for name, place in self.belt.places.items():
            if OFF not in stories[name].states and place.machine.node.domain(name).state()[0] != RUNNING:
                found.append(Violation(name, "I1", told(place.machine)))
        return found

    def _story(self, name: str, did: str, *, takes_power: bool) -> Story:
        may_be_off = takes_power or (did == "restore" and self._was_off(name))
        return Story(
            restored=self.asked[name] if did == "restore" else "",
            lost_power=takes_power,
            states=(RUNNING, OFF) if may_be_off else (),
            deleted=(self.asked[name],) if did == "delete" else (),
        )

    def _was_off(self, name: str) -> bool:
        """Whether the machine was off when the set was made that is restored."""
        folder = sets.directory_of(self.belt.places[name].machine, self.asked[name])
        return bool(sets.manifest(folder)["power"] == "off")

    def _settle(self) -> None:
        """As an admin does in the morning: power on, back out of what failed, let failed leaves go."""
        self.belt.switch_all_on()
        for (name, stamp), leaf in self.belt.leaves().items():
            if not is_failed(leaf):
                continue
            dn = self.belt.plain.leaf_dn(name, stamp)
            if ROWS[mode_of(leaf)].mode in ROWS[Mode.FINISHED].follows:
                self.belt.plain.modify(dn, "replace sstProvisioningReturnValue 0")
                self.belt.plain.finish(name, stamp)
            elif mode_of(leaf) not in (Mode.MERGING, Mode.RETAINING):
                self.belt.plain.delete_tree(dn)


def _is_over(leaf: Leaf) -> bool:
    """Whether neither agent nor controller has anything to do for it."""
    return is_failed(leaf) or mode_of(leaf) is Mode.FINISHED


def _good(name: str, leaves: dict[tuple[str, str], Leaf]) -> list[str]:
    finished = (key[1] for key, leaf in leaves.items() if key[0] == name and _is_good(leaf))
    return sorted(finished)


def _restorable(name: str, leaves: dict[tuple[str, str], Leaf]) -> list[str]:
    """Without hardware virtualization QEMU may miss pages in a memory that it reads while the guest runs."""
    return [stamp for stamp in _good(name, leaves) if leaves[name, stamp].get("vmkeepMethod") != ["live"]]


def _is_good(leaf: Leaf) -> bool:
    return mode_of(leaf) is Mode.FINISHED and not is_failed(leaf) and is_at_rest(leaf)
