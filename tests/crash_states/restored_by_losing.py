"""A restore on a node that loses power: the world of the restores that are killed, with a disk that forgets.

What libvirt defines is taken to be durable; what it saves is, but for its word that it is whole.
"""

import json
import os
from pathlib import Path
from typing import Any

from nodeagent.host.description import describe
from nodeagent.host.hypervisor import View
from nodeagent.journal import Journals, Outcome
from nodeagent.operations.aside import note_restored
from nodeagent.operations.cleaning import clean_up
from nodeagent.operations.restore import restore
from nodeagent.operations.saved_memory import NO_MEMORY
from tests.crash_states.losing_power import until_a_result
from tests.pure.restored_world import PlayedHypervisor, Scene, World, new, old
from vmkeep.contract.machine import Power


class _Hypervisor(PlayedHypervisor):
    """The played libvirt, with a guest that writes only when it is saved, begun or let go, and flushes before."""

    def look(self, _name: str) -> View | None:
        if self.guest is None and not self.defined:
            return None
        power, xml = (self.guest.power, self.guest.xml) if self.guest is not None else (Power.OFF, self.defined)
        return View(power, self.guest is None and self.stopped_by_itself, False, xml, describe(xml))

    def save(self, _name: str, path: str) -> None:
        guest = self._guest()
        guest.write()
        for descriptor in guest.images.values():
            os.fdatasync(descriptor)
        kept = {"memory": guest.memory, "disks": guest.content(), "xml": guest.xml}
        Path(path).write_bytes(b"LibvirtQemudPart" + json.dumps(kept).encode())
        with open(path, "r+b") as file:
            os.fdatasync(file.fileno())
            file.write(b"LibvirtQemudSave")
        self._end(stopped_by_itself=False)


class QuietWorld(World):
    """Its guests write at few moments, and the disk is told."""

    played = _Hypervisor


class Restored:
    """One restore."""

    world_type: type[QuietWorld] = QuietWorld

    def __init__(self, roots: list[Path], scene: Scene) -> None:
        self.roots, self.scene = roots, scene
        self.world = self.world_type(roots[0], scene)
        self.journals = Journals(roots[0] / "journal")
        self.world.host.unretained.note(self.world.order)

    def act(self) -> None:
        self.recover()
        assert self.outcome.code == 0, self.outcome

    def witness(self) -> Any:
        return self.world.hypervisor.defined

    def lose_power(self, witness: Any) -> None:
        hypervisor = self.world.hypervisor
        hypervisor.power_off()
        hypervisor.defined, hypervisor.stopped_by_itself = witness, False

    def check_at_once(self) -> None:
        self.world.check_nothing_is_lost()

    def recover(self) -> None:
        world = self.world
        journal = until_a_result(self.journals, world.order, lambda: restore(world.order, world.host))
        assert journal.record.result is not None
        self.outcome: Outcome = journal.record.result
        if self.outcome.code == 0:
            note_restored(world.order, world.host)

    def check(self) -> None:
        self.world.check_nothing_is_lost()
        if self.outcome.code == 0:
            self._check_restored()
        else:
            self._check_as_before()
        self._check_firmware()

    def _check_restored(self) -> None:
        world, scene = self.world, self.scene
        for number, disk in enumerate(world.order.disks):
            assert world.path(disk.target).read_bytes().startswith(new(disk.target))
            if number < scene.old:
                assert (world.before / disk.target).read_bytes().startswith(old(disk.target))
        assert scene.alone or "new" in world.hypervisor.defined
        guest = world.hypervisor.guest
        if guest is not None:
            assert (scene.memory or scene.starts) and guest.memory in ("the set", "fresh"), guest
            assert guest.power is scene.becomes

    def _check_as_before(self) -> None:
        world, scene = self.world, self.scene
        for number, disk in enumerate(world.order.disks):
            if number < scene.old:
                assert world.path(disk.target).read_bytes().startswith(old(disk.target)), self.outcome
            else:
                assert not world.path(disk.target).exists(), self.outcome
            kept = world.retain / disk.kept
            assert not kept.exists() or kept.read_bytes() == new(disk.target), "what is kept is the backup"
        assert world.hypervisor.defined == world.order.set.old_xml
        assert world.leftovers() == [], self.outcome
        guest = world.hypervisor.guest
        if guest is None:
            assert scene.power is Power.OFF or NO_MEMORY in self.outcome.sentence or not scene.defined, self.outcome
        else:
            assert guest.memory in ("old", "fresh") and guest.power is scene.power, (guest, self.outcome)

    def _check_firmware(self) -> None:
        if self.outcome.code == 0:
            expected = b"new nvram" if self.scene.firmware else None
        else:
            expected = b"old nvram" if self.scene.old_firmware else None
        nvram = self.world.nvram
        assert (nvram.read_bytes() if nvram.exists() else None) == expected, self.outcome


class Cleared(Restored):
    """What a restore that came out well left is cleared away."""

    def __init__(self, roots: list[Path], scene: Scene) -> None:
        super().__init__(roots, scene)
        super().recover()
        (roots[0] / "journal" / os.listdir(roots[0] / "journal")[0]).unlink()
        self.world.faults.watch = lambda: None  # from here on the old bytes may go

    def recover(self) -> None:
        for order in self.world.host.unretained.all():
            assert clean_up(order, self.world.host, keep_old=False)

    def act(self) -> None:
        self.recover()

    def check_at_once(self) -> None:
        for disk in self.world.order.disks:
            assert self.world.path(disk.target).read_bytes().startswith(new(disk.target))

    def check(self) -> None:
        self.check_at_once()
        assert list((self.roots[0] / "retain").iterdir()) == []
        assert self.world.host.unretained.all() == []
