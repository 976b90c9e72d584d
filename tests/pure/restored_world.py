"""A world in which a restore can be killed at every touch of the disk: real directories, a libvirt that is played.

The played libvirt keeps what matters: which images QEMU holds open, and which content of them a memory belongs to. A
memory that comes back over any other content is `Corrupted`, whatever else comes out well. A guest that runs writes.
"""

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodeagent.host.description import describe
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.journal import Journal
from nodeagent.order import Firmware, Order, OrderDisk, Restoring
from nodeagent.steps import Host
from nodeagent.unretained import Unretained
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

MACHINE, LEAF, UUID = "vm", "20260101T000000Z", "0b0f4a36-7e0a-4b0e-8f43-0d5b6c3c1f00"
TARGETS = ("vda", "vdb")
_MAGIC = b"LibvirtQemudSave"
_TOUCHES = ("link", "rename", "unlink", "rmdir", "mkdir", "fsync", "fchmod", "fchown", "sendfile", "ftruncate")
_REAL = {name: getattr(os, name) for name in (*_TOUCHES, "open", "fdatasync")}


class Killed(BaseException):
    """What SIGKILL is: nothing of the agent runs any more, its `finally` no more than the rest."""


class Corrupted(BaseException):
    """Memory met disks that are not its own, or data is gone."""


@dataclass(frozen=True)
class Scene:
    """What there was, and what is wanted. `old`: disks with an image at their path."""

    disks: int = 1
    old: int = 1
    power: Power = Power.RUNNING
    becomes: Power = Power.RUNNING
    memory: bool = True
    starts: bool = False
    alone: bool = False
    firmware: bool = False
    old_firmware: bool = False
    defined: bool = True


class Faults:
    """Counts every touch before and after, and ends the agent, or makes the host refuse, at one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.kill_at: int | None = None
        self.refuse_at: int | None = None
        self.full_from: int | None = None
        self.lost: frozenset[str] = frozenset()
        self.has_room_for_marks = True
        self.lines = 0
        self.dead = False
        self.watch: Callable[[], None] = lambda: None

    def touch(self, doing: Callable[[], Any], error: Exception) -> Any:
        """Before, the touch itself, after."""
        self._boundary()
        if self.refuse_at == self.count - 1:
            raise error
        result = doing()
        self.watch()
        self._boundary()
        return result

    def _boundary(self) -> None:
        if self.dead or self.kill_at == self.count:
            self.dead = True
            raise Killed
        self.count += 1

    def write(self, journal: Journal, line: dict[str, Any]) -> None:
        """The journal's own write: two boundaries, and a disk that may be full from some line on."""
        self._boundary()
        self.lines += 1
        is_full = self.full_from is not None and self.lines > self.full_from
        if is_full or line["event"] in self.lost:
            raise OSError(28, "the journal's disk is full")
        with journal.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._boundary()


@contextmanager
def counted(faults: Faults, monkeypatch: Any) -> Iterator[None]:
    """Every touch of the disk goes through `faults` in here; nothing waits for a real disk."""

    def touching(name: str) -> Callable[..., Any]:
        def touch(*args: Any, **kwargs: Any) -> Any:
            doing = (lambda: None) if name == "fsync" else (lambda: _REAL[name](*args, **kwargs))
            return faults.touch(doing, OSError(5, f"{name} was refused by the test"))

        return touch

    def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and "taken-back" in str(path) and not faults.has_room_for_marks:
            raise OSError(28, "no room")
        if flags & os.O_CREAT:
            return int(faults.touch(lambda: _REAL["open"](path, flags, *args, **kwargs), OSError(28, "no room")))
        return int(_REAL["open"](path, flags, *args, **kwargs))

    with monkeypatch.context() as patch:
        for name in _TOUCHES:
            patch.setattr(os, name, touching(name))
        patch.setattr(os, "open", opening)
        patch.setattr(os, "fdatasync", lambda _descriptor: None)
        patch.setattr(Journal, "_write", lambda journal, line: faults.write(journal, line))
        yield


@dataclass
class Guest:
    """What QEMU is: a memory, and the images it holds open, whatever name they bear by now."""

    memory: str
    power: Power
    xml: str
    images: dict[str, int]

    def write(self) -> None:
        """A guest that runs writes all the time."""
        if self.power is Power.RUNNING:
            for descriptor in self.images.values():
                os.pwrite(descriptor, f"+{self.memory}".encode(), os.fstat(descriptor).st_size)

    def content(self) -> dict[str, str]:
        return {
            target: base64.b64encode(os.pread(descriptor, 1 << 20, 0)).decode()
            for target, descriptor in self.images.items()
        }


@dataclass
class PlayedHypervisor:
    """The verbs of the door that a restore uses."""

    faults: Faults
    defined: str = ""
    guest: Guest | None = None
    stopped_by_itself: bool = False
    failing: set[str] = field(default_factory=set)

    def look(self, _name: str) -> View | None:
        if self.guest is not None:
            self.guest.write()
            return View(self.guest.power, False, False, self.guest.xml, describe(self.guest.xml))
        if not self.defined:
            return None
        return View(Power.OFF, self.stopped_by_itself, False, self.defined, describe(self.defined))

    def definition(self, _name: str) -> str:
        return self.defined

    def define(self, xml: str) -> None:
        self._verb("define", lambda: setattr(self, "defined", xml))

    def undefine(self, _name: str) -> None:
        self._verb("undefine", lambda: setattr(self, "defined", ""))

    def is_saving(self, _name: str) -> bool:
        return False

    def save(self, _name: str, path: str) -> None:
        def save() -> None:
            guest = self._guest()
            guest.write()
            kept = {"memory": guest.memory, "disks": guest.content(), "xml": guest.xml}
            Path(path).write_bytes(_MAGIC + json.dumps(kept).encode())
            self._end(stopped_by_itself=False)

        self._verb("save", save)

    def saved_description(self, path: str) -> str:
        return str(_kept(path)["xml"])

    def restore(self, path: str, xml: str, power: Power) -> None:
        def restore() -> None:
            kept = _kept(path)
            self._begin(kept["memory"], power, xml)
            if self._guest().content() != kept["disks"]:
                raise Corrupted(f"the memory of {kept['memory']} came back over {self._guest().content()}")

        self._verb(f"restore {_kept(path)['memory']}", restore)

    def start(self, _name: str, *, paused: bool = False) -> None:
        self._verb("start", lambda: self._begin("fresh", Power.PAUSED if paused else Power.RUNNING, self.defined))

    def resume(self, _name: str) -> None:
        def resume() -> None:
            self._guest().power = Power.RUNNING
            self._guest().write()

        self._verb("resume", resume)

    def destroy(self, _name: str) -> None:
        self._verb("destroy", lambda: self._end(stopped_by_itself=True))

    def _verb(self, name: str, doing: Callable[[], None]) -> None:
        if name in self.failing:
            raise HostFailure(f"libvirt: {name} was refused by the test")
        self.faults.touch(doing, HostFailure(f"libvirt: {name} was refused by the test"))

    def _guest(self) -> Guest:
        if self.guest is None:
            raise HostFailure("libvirt: domain is not running")
        return self.guest

    def _begin(self, memory: str, power: Power, xml: str) -> None:
        if self.guest is not None:
            raise HostFailure("libvirt: domain is already active")
        try:
            images = {
                disk.target: _REAL["open"](str(disk.source), os.O_RDWR | os.O_CLOEXEC) for disk in describe(xml).disks
            }
        except FileNotFoundError as why:
            raise HostFailure(f"libvirt: {why}") from None
        self.guest = Guest(memory, power, xml, images)
        self.guest.write()

    def _end(self, *, stopped_by_itself: bool) -> None:
        for descriptor in self._guest().images.values():
            os.close(descriptor)
        self.guest, self.stopped_by_itself = None, stopped_by_itself

    def power_off(self) -> None:
        """The power of the whole node fails."""
        if self.guest is not None:
            self._end(stopped_by_itself=False)


def _kept(path: str) -> dict[str, Any]:
    content = Path(path).read_bytes()
    if not content.startswith(_MAGIC):
        raise HostFailure("libvirt: save image is incomplete")
    return dict(json.loads(content[len(_MAGIC) :]))


class World:
    """One machine and one restore of it, with everything that a scene wants to be there."""

    played: type[PlayedHypervisor] = PlayedHypervisor

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.folder, self.scene, self.faults = folder, scene, Faults()
        self.hypervisor = self.played(self.faults)
        self.order = _order(folder, scene)
        self.retain = Path(self.order.paths.retain)
        self.before = self.retain / "before"
        self.nvram = folder / "nvram" / "vm_VARS.fd"
        self._make()
        disks = tuple(
            disk.model_copy(update={"inode": (self.retain / disk.kept).stat().st_ino}) for disk in self.order.disks
        )
        self.order = self.order.model_copy(update={"disks": disks})
        self.faults.watch = self.check_nothing_is_lost

    @property
    def host(self) -> Host:
        hypervisor: Any = self.hypervisor
        images: Any = None
        return Host("n1", hypervisor, images, (str(self.folder),), {}, Unretained(self.folder / "notes"))

    def path(self, target: str) -> Path:
        return self.folder / "images" / f"{target}.qcow2"

    def _make(self) -> None:
        for folder in (self.retain, self.nvram.parent, self.path("vda").parent):
            folder.mkdir(parents=True, exist_ok=True)
        for number, disk in enumerate(self.order.disks):
            (self.retain / disk.kept).write_bytes(new(disk.target))
            if number < self.scene.old:
                self.path(disk.target).write_bytes(old(disk.target))
        if self.scene.firmware:
            (self.retain / "vm.nvram.kept").write_bytes(b"new nvram")
        if self.scene.old_firmware:
            self.nvram.write_bytes(b"old nvram")
        disks = {disk.target: base64.b64encode(new(disk.target)).decode() for disk in self.order.disks}
        kept = {"memory": "the set", "disks": disks, "xml": self.order.set.xml}
        (self.retain / "vm.state.kept").write_bytes(_MAGIC + json.dumps(kept).encode())
        self.hypervisor.defined = self.order.set.old_xml
        if self.scene.power is not Power.OFF:
            self.hypervisor._begin("old", self.scene.power, _xml(self.folder, self.scene, "old"))

    def check_nothing_is_lost(self) -> None:
        """At every moment: an image at each path that had one, and the old bytes at it or aside."""
        for disk in self.order.disks[: self.scene.old]:
            places = (self.path(disk.target), self.before / disk.target)
            if not places[0].exists():
                raise Corrupted(f"there is no image at {places[0]}")
            if not any(place.exists() and place.read_bytes().startswith(old(disk.target)) for place in places):
                raise Corrupted(f"the old {disk.target} is gone")

    def leftovers(self) -> list[str]:
        """Every file but those that are meant to be there after the machine was put back."""
        kept = {disk.kept for disk in self.order.disks} | {"vm.nvram.kept", "vm.state.kept"}
        meant = {f"{target}.qcow2" for target in TARGETS[: self.scene.old]}
        meant |= {self.nvram.name} if self.scene.old_firmware else set()
        found = []
        for top in (self.retain, self.path("vda").parent, self.nvram.parent):
            found += [name for name in os.listdir(top) if name not in (kept if top == self.retain else meant)]
        return found


def old(target: str) -> bytes:
    """What lay on a disk before."""
    return f"old {target}".encode()


def new(target: str) -> bytes:
    """What the set has of a disk."""
    return f"new {target}".encode()


def _order(folder: Path, scene: Scene) -> Order:
    targets = TARGETS[: scene.disks]
    firmware = Firmware(role="nvram", path=str(folder / "nvram" / "vm_VARS.fd"), kept="vm.nvram.kept")
    return Order(
        leaf_dn=f"ou={LEAF}",
        machine=MACHINE,
        timestamp=LEAF,
        mode=Mode.RESTORING,
        uuid=UUID,
        power=scene.power,
        disks=tuple(
            OrderDisk(target=target, path=str(folder / "images" / f"{target}.qcow2"), kept=f"{target}.qcow2.kept")
            for target in targets
        ),
        firmware=(firmware,) if scene.firmware else (),
        retain_root=str(folder / "retain"),
        backup_root=str(folder / "backup"),
        place=("vm-persistent", "p"),
        restoring=Restoring(
            set_directory=str(folder / "backup/set"),
            xml=_xml(folder, scene, "new"),
            old_xml=_xml(folder, scene, "old") if scene.defined else "",
            state_file="vm.state.kept" if scene.memory else "",
            starts=scene.starts,
            becomes=scene.becomes,
            alone=scene.alone,
        ),
    )


def _xml(folder: Path, scene: Scene, title: str) -> str:
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{folder}/images/{target}.qcow2'/><target dev='{target}' bus='virtio'/></disk>"
        for target in TARGETS[: scene.disks]
    )
    return f"<domain><name>{MACHINE}</name><uuid>{UUID}</uuid><title>{title}</title><devices>{disks}</devices></domain>"


@contextmanager
def made(scene: Scene) -> Iterator[World]:
    """A world for one run, in memory where there is a RAM disk: its files are many and small."""
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="vmkeep-world-", dir=ram) as name:
        world = World(Path(name), scene)
        try:
            yield world
        finally:
            world.hypervisor.power_off()
