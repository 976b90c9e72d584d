"""One strike: all machines of a belt are held at work, a fault hits, all is let go; then everything is looked at.

What comes back is one cell for each mode of work that was hit.
"""

import time
from dataclasses import dataclass, field

from tests.faults.belt import Belt, Leaf, Place, is_failed, mode_of
from tests.faults.catalogue import Fault
from tests.faults.invariants import OFF, RUNNING, Story, World, changed_by_another_start, is_up, told
from tests.faults.violation import Violation
from vmkeep.contract.modes import Mode, done

BACK_WITHIN = 60.0  # seconds


@dataclass(frozen=True)
class Cell:
    """What became of the work in one mode under one fault; `sentence` where it failed, `up` in seconds."""

    fault: str
    mode: Mode
    method: str
    ended: str
    sentence: str
    up: float
    violations: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        said = f" ({self.sentence})" if self.sentence else ""
        return f"{self.fault:24} {self.mode:24} {self.method:5} → {self.ended}{said}, up after {self.up:.1f} s"


def strike(belt: Belt, world: World, fault: Fault) -> dict[Mode, Cell]:
    """Bring every machine to its doorstep, hit, let go, heal, and check all that must hold."""
    belt.turn()
    world.look(*(place.machine for place in belt.places.values()))
    belt.hold(fault.holds)
    fault.strike(belt)
    began = time.monotonic()
    belt.release()
    if not fault.guests_wait:
        _wait_until_up(belt, fault)
    if fault.goes_on:
        belt.wait_until_rest(fault.goes_on)
    fault.heal(belt)
    if fault.guests_wait:
        began = time.monotonic()
    if belt.agent() is None:
        belt.start_agent()
    _wait_until_up(belt, fault)
    up = time.monotonic() - began
    ended = belt.wait_until_rest()
    found = _seen_in_the_end(world, {name: story(fault, place, ended[name]) for name, place in belt.places.items()})
    found += _another_start(belt)
    return {place.working: _cell(fault, place, ended[name], up, found) for name, place in belt.places.items()}


def _seen_in_the_end(world: World, stories: dict[str, Story]) -> list[Violation]:
    """A leaf that ends, or is gone, does not say that nobody is at work any more: cleaning up follows."""
    deadline = time.monotonic() + BACK_WITHIN
    while (found := world.violations(stories)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _wait_until_up(belt: Belt, fault: Fault) -> None:
    deadline = time.monotonic() + BACK_WITHIN
    for place in belt.places.values() if not fault.takes_power else ():
        while not is_up(place.machine):
            assert time.monotonic() < deadline, (
                f"{place.working}: not up after {BACK_WITHIN:g} s: {told(place.machine)}"
            )


def story(fault: Fault, place: Place, leaf: Leaf | None) -> Story:
    """What may have happened to a machine under a fault."""
    working = place.working
    may_go_back = working is Mode.RESTORING
    keeps_its_images = working not in (Mode.SNAPSHOTTING, Mode.MERGING, Mode.RESTORING)
    is_by_agent = not fault.leaves_end  # who ends a leaf by hand does not stop the restore: it is finished
    put_back = working is Mode.RESTORING and leaf is not None and is_failed(leaf) and is_by_agent
    return Story(
        restored=place.asked if may_go_back else "",
        lost_power=fault.takes_power,
        states=(RUNNING, OFF) if fault.takes_power else (),
        deleted=(place.asked,) if working is Mode.DELETING else (),
        untouched=keeps_its_images or put_back,
    )


def _another_start(belt: Belt) -> list[Violation]:
    """Killed and started again, an agent that has nothing to do changes nothing."""
    machines = [place.machine for place in belt.places.values()]
    before = World(belt.lab)
    before.look(*machines)
    belt.lab.kill_agent(belt.node)
    belt.start_agent()
    return changed_by_another_start(before.pictures, machines)


def _cell(fault: Fault, place: Place, leaf: Leaf | None, up: float, found: list[Violation]) -> Cell:
    if leaf is None:
        ended, sentence = "gone", ""
    elif is_failed(leaf):
        ended = f"failed with {leaf['sstProvisioningReturnValue'][0]}"
        sentence = leaf.get("vmkeepMessage", [""])[0]
    else:
        ended, sentence = ("well" if mode_of(leaf) is done(place.working) else f"at {mode_of(leaf)}"), ""
    own = tuple(str(each) for each in found if each.machine == place.machine.name or each.invariant == "I9")
    return Cell(fault.name, place.working, place.method, ended, sentence, up, own)
