"""The worlds of each kind of work, for an agent that is killed: libvirt and QEMU live on; a step may be refused."""

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nodeagent.host.errors import HostFailure
from nodeagent.operations.restore import restore
from nodeagent.steps import Facts, Host, Step
from nodeagent.work import PLANS
from tests.crash_states import unretained_world
from tests.crash_states.backed_up_world import BackedUp, Scene
from tests.crash_states.losing_power import directories, until_a_result
from tests.crash_states.played_node import Guest
from tests.crash_states.restored_by_losing import QuietWorld, Restored
from tests.crash_states.unretained_world import Unretaining
from tests.pure import restored_world
from tests.pure.test_restore_steps import SCENES, assert_truthful
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method
from vmkeep.contract.modes import Mode

Wrapper = Callable[[Any], Any]


def _as_it_is(thing: Any) -> Any:
    return thing


def _nothing() -> None:
    pass


def refusing(steps: tuple[Step, ...], refused: str, begins: Callable[[], None]) -> tuple[Step, ...]:
    """The steps, of which one does all it has to do and is refused then."""

    def failing(step: Step) -> Step:
        def apply(facts: Facts) -> Facts:
            begins()
            step.apply(facts)
            raise HostFailure("refused by the test")

        return replace(step, apply=apply) if step.name == refused else step

    return tuple(failing(step) for step in steps)


class Backup(BackedUp):
    """One step of a backup."""

    def __init__(self, roots: list[Path], scene: Scene, mode: Mode, refused: str = "") -> None:
        self.refused, self.outside, self.begins = refused, _as_it_is, _nothing
        super().__init__(roots, scene, mode)
        self.roots = [*roots, self.ram_disk]

    @property
    def host(self) -> Host:
        host = super().host
        outside = {"hypervisor": self.outside(host.hypervisor), "images": self.outside(host.images)}
        return replace(host, wall_clock=lambda: 1.0, **outside)

    def plan(self, mode: Mode) -> tuple[Step, ...]:
        steps = super().plan(mode)
        return refusing(steps, self.refused, self.begins) if mode is self.mode else steps

    def step_names(self) -> list[str]:
        return [step.name for step in PLANS[self.mode](self.order(self.mode), self.host)]

    def act(self) -> None:
        self.recover()
        assert bool(self.outcome.code) is self.fails, self.outcome

    @property
    def fails(self) -> bool:
        return bool(self.refused) or self.scene.instant_is_gone

    def check(self) -> None:
        """What was refused after it was done may be found to be done by whoever comes after a kill."""
        assert self.fails or not self.outcome.code, self.outcome
        assert "could not be put back" not in self.outcome.sentence, self.outcome
        super().check()

    def _check_merge(self) -> None:
        retain = Path(self.order().paths.retain)
        if self.outcome.code and retain.exists():  # every image is copied: it can be asked for again
            self._check_files_of_instant(retain, "", Path(self.order().paths.backup) if self.scene.once else None)
        else:
            super()._check_merge()

    def machine(self) -> Hashable:
        played = self.hypervisor
        guest = played.guest and (played.guest.memory, played.guest.power, played.guest.xml)
        written = tuple(sorted(played.acknowledged.items())), played.writes
        return played.defined, guest, written, frozenset(played.commits), tuple(sorted(played.held.items()))

    def set_machine(self, known: Any) -> None:
        played = self.hypervisor
        played.defined, guest, (acknowledged, played.writes), commits, held = known
        played.held = dict(held)
        played.acknowledged, played.commits = dict(acknowledged), set(commits)
        played.guest = guest and Guest(*guest)


class BroughtBack(Unretaining):
    """A step of bringing a set back."""

    def __init__(self, roots: list[Path], mode: Mode, refused: str = "") -> None:
        self.refused, self.outside, self.begins = "", _as_it_is, _nothing
        super().__init__(roots, mode)
        self.refused, self.fails = refused, bool(refused)

    def plan(self, mode: Mode) -> tuple[Step, ...]:
        return refusing(super().plan(mode), self.refused, self.begins)

    def step_names(self) -> list[str]:
        return [step.name for step in super().plan(self.mode)]

    def machine(self) -> Hashable:
        return None

    def set_machine(self, known: Any) -> None:
        """The machine is not touched."""


class Deleted(unretained_world.Deleting):
    """A deletion."""

    outside: Wrapper = staticmethod(_as_it_is)
    begins: Callable[[], None] = staticmethod(_nothing)

    def machine(self) -> Hashable:
        return None

    def set_machine(self, known: Any) -> None:
        """The machine is not touched."""


class _RestoredWorld(QuietWorld):
    outside: Wrapper = staticmethod(_as_it_is)

    @property
    def host(self) -> Host:
        host = super().host
        return replace(host, wall_clock=lambda: 1.0, hypervisor=self.outside(host.hypervisor))


class Restoring(Restored):
    """A restore."""

    world_type = _RestoredWorld

    def __init__(self, roots: list[Path], scene: restored_world.Scene, refused: str = "") -> None:
        self.refused, self.begins = refused, _nothing
        super().__init__(roots, scene)

    @property
    def outside(self) -> Wrapper:
        return self.world.outside

    @outside.setter
    def outside(self, wrapper: Wrapper) -> None:
        self.world.outside = wrapper  # type: ignore[method-assign]

    def step_names(self) -> list[str]:
        return [step.name for step in restore(self.world.order, self.world.host)]

    def act(self) -> None:
        self.recover()
        assert bool(self._code) is bool(self.refused), self.journal.record.result

    def recover(self) -> None:
        world = self.world
        self.journal = until_a_result(
            self.journals, world.order, lambda: refusing(restore(world.order, world.host), self.refused, self.begins)
        )

    @property
    def _code(self) -> int:
        assert self.journal.record.result is not None
        return self.journal.record.result.code

    def check(self) -> None:
        """What was refused after it was done may be found to be done by whoever comes after a kill."""
        assert self.refused or not self._code, self.journal.record.result
        assert_truthful(self.world, self.journal, "")

    def machine(self) -> Hashable:
        played = self.world.hypervisor
        guest = played.guest and (played.guest.memory, played.guest.power, played.guest.xml, _inodes(played.guest))
        return played.defined, played.stopped_by_itself, guest

    def set_machine(self, known: Any) -> None:
        played = self.world.hypervisor
        played.power_off()
        played.defined, played.stopped_by_itself, guest = known
        if guest is not None:
            *told, inodes = guest
            places = {os.stat(path).st_ino: path for path in self.roots[0].parent.glob("kept-*/*")}
            images = {target: os.open(places[inode], os.O_RDWR | os.O_CLOEXEC) for target, inode in inodes}
            played.guest = restored_world.Guest(*told, images)


def _inodes(guest: restored_world.Guest) -> tuple[tuple[str, int], ...]:
    """What it has open, whatever name that bears."""
    return tuple((target, os.fstat(descriptor).st_ino) for target, descriptor in sorted(guest.images.items()))


@dataclass(frozen=True)
class Scenery:
    """What one kind of work is killed in. `bases` are where its filesystems are; `goes_back`: steps can be undone."""

    make: Callable[..., Any]
    bases: tuple[str, ...] = ("/dev/shm",)
    goes_back: bool = True


_TWO = ("/dev/shm", "/tmp")
_RUNS = Scene(2, firmware=True, ram_disk=True, start_wait=60)
_LIVE = Scene(2, method=Method.LIVE, firmware=True)
_BESIDE_OTHERS, _ONCE = Scene(1, Power.OFF, earlier_sets=2), Scene(1, method=Method.DISK, once=True)


def _backup(mode: Mode, scene: Scene, bases: tuple[str, ...] = ("/dev/shm",), *, goes_back: bool = True) -> Scenery:
    return Scenery(lambda roots, refused="": Backup(roots, scene, mode, refused), bases, goes_back)


def _brought_back(mode: Mode) -> Scenery:
    return Scenery(lambda roots, refused="": BroughtBack(roots, mode, refused), _TWO)


def _deleted(before: bool) -> Scenery:
    return Scenery(lambda roots: Deleted(roots, before=before), goes_back=False)


def _restored(scene: restored_world.Scene) -> Scenery:
    return Scenery(lambda roots, refused="": Restoring(roots, scene, refused))


WORLDS: dict[Mode, dict[str, Scenery]] = {
    Mode.SNAPSHOTTING: {
        "runs, memory on the RAM disk": _backup(Mode.SNAPSHOTTING, _RUNS),
        "paused": _backup(Mode.SNAPSHOTTING, Scene(1, Power.PAUSED)),
        "off": _backup(Mode.SNAPSHOTTING, Scene(2, Power.OFF, firmware=True)),
        "live": _backup(Mode.SNAPSHOTTING, _LIVE),
        "disk": _backup(Mode.SNAPSHOTTING, Scene(1, method=Method.DISK)),
    },
    Mode.MERGING: {
        "runs": _backup(Mode.MERGING, Scene(2), goes_back=False),
        "paused": _backup(Mode.MERGING, Scene(1, Power.PAUSED), goes_back=False),
        "off": _backup(Mode.MERGING, Scene(2, Power.OFF), goes_back=False),
        "live": _backup(Mode.MERGING, Scene(2, method=Method.LIVE)),
        "live, its instant gone": _backup(
            Mode.MERGING, Scene(1, method=Method.LIVE, instant_is_gone=True), goes_back=False
        ),
        "disk, to another filesystem": _backup(Mode.MERGING, _ONCE, _TWO),
    },
    Mode.RETAINING: {
        "runs": _backup(Mode.RETAINING, _RUNS, goes_back=False),
        "off, beside others": _backup(Mode.RETAINING, _BESIDE_OTHERS, goes_back=False),
        "runs, to another filesystem": _backup(Mode.RETAINING, _RUNS, _TWO, goes_back=False),
        "off, beside others, to another filesystem": _backup(Mode.RETAINING, _BESIDE_OTHERS, _TWO, goes_back=False),
        "disk, copied by the merge": _backup(Mode.RETAINING, _ONCE, _TWO, goes_back=False),
    },
    Mode.UNRETAINING_SMALL_FILES: {"a set": _brought_back(Mode.UNRETAINING_SMALL_FILES)},
    Mode.UNRETAINING_LARGE_FILES: {"a set": _brought_back(Mode.UNRETAINING_LARGE_FILES)},
    Mode.RESTORING: {name: _restored(scene) for name, scene in SCENES.items()},
    Mode.DELETING: {"a set": _deleted(before=False), "what a restore replaced is kept": _deleted(before=True)},
}


def step_names(scenery: Scenery) -> list[str]:
    """The steps of the work in it."""
    with directories(*scenery.bases) as roots:
        return list(scenery.make(roots).step_names())
