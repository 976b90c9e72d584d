"""libvirt, QEMU and qemu-img as far as a backup uses them, on small files, minding what a power loss must not take.

An image is a real qcow2 header over a few bytes, which lie over its backing file's. What a guest
wrote and flushed is `acknowledged`. A memory that comes back over any other content than its own is `Corrupted`.
QEMU orders its own writes: of an image that it changes in place, a change is there or is not.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path, PurePath
from typing import Any

from nodeagent.host.description import describe, with_chain, with_sources
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder
from nodeagent.host.hypervisor import Job, View
from nodeagent.host.images import Images
from vmkeep.contract.machine import Power

MAGIC = b"QFI\xfb"
_FIXED = struct.Struct(">4sIQIIQIIQ")
_NAME_AT, _TABLE_AT, _DATA_AT = 72, 472, 480
_SAVED, _SAVING = b"LibvirtQemudSave", b"LibvirtQemudPart"


class Corrupted(AssertionError):
    """Memory met disks that are not its own, or a chain names what is not there."""


def image(data: bytes, backing: str = "") -> bytes:
    """A qcow2 image, small."""
    name = os.fsencode(backing)
    fixed = _FIXED.pack(MAGIC, 2, _NAME_AT if name else 0, len(name), 16, 1 << 20, 0, 1, _TABLE_AT)
    head = (fixed.ljust(_NAME_AT, b"\0") + name).ljust(_TABLE_AT, b"\0")
    return head + struct.pack(">Q", bool(data)) + data


def parts(path: Path) -> tuple[bytes, str]:
    """An image's own data, and its backing file."""
    content = path.read_bytes()
    if len(content) < _DATA_AT or not content.startswith(MAGIC):
        raise Corrupted(f"{path} is no image: {content[:20]!r}")
    at, length = struct.unpack_from(">QI", content, 8)
    return content[_DATA_AT:], os.fsdecode(content[at : at + length]) if at else ""


def reads_as(path: Path) -> bytes:
    """What a guest reads from an image: the whole chain."""
    data, backing = parts(path)
    return over(data, reads_as(Path(backing)) if backing else b"")


def over(data: bytes, below: bytes) -> bytes:
    """What an image reads as over another: where it holds nothing, a NUL, the one below shows through."""
    length = max(len(data), len(below))
    return bytes(own or other for own, other in zip(data.ljust(length, b"\0"), below.ljust(length, b"\0"), strict=True))


def chain(path: Path) -> tuple[str, ...]:
    """An image and what it lies over."""
    _, backing = parts(path)
    return (str(path), *(chain(Path(backing)) if backing else ()))


def write_in_place(path: Path, content: bytes) -> None:
    """As QEMU does it, with a flush at the end."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


class PlayedImages(Images):
    """qemu-img."""

    def create_overlay(self, path: PurePath, backing: PurePath, _size: int) -> None:
        Path(path).write_bytes(image(b"", str(backing)))

    def flatten(self, path: PurePath, _bandwidth: int = 0) -> None:
        """The name goes first; where the data lies is written when it is closed."""
        whole, (own, _) = image(reads_as(Path(path))), parts(Path(path))
        write_in_place(Path(path), image(own))
        write_in_place(Path(path), whole)

    def relink(self, path: PurePath, backing: PurePath) -> None:
        own, _ = parts(Path(path))
        write_in_place(Path(path), image(own, str(backing)))

    def commit(self, overlay: PurePath, _bandwidth: int = 0) -> None:
        commit(Path(overlay))

    def check(self, path: PurePath) -> None:
        parts(Path(path))

    def is_open(self, _folder: Folder, _name: str) -> bool:
        return False

    def is_written(self, _folder: Folder, _name: str) -> bool:
        return False


def commit(overlay: Path) -> None:
    """Write an overlay back into what it lies over, which is whole."""
    _, backing = parts(overlay)
    write_in_place(Path(backing), image(reads_as(overlay)))


@dataclass
class Guest:
    """A memory and what it runs over."""

    memory: str
    power: Power
    xml: str


@dataclass
class PlayedHypervisor:
    """The verbs of the door that a backup uses. `writes` counts what guests wrote, `held` is what QEMU holds back."""

    defined: str
    guest: Guest | None = None
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    writes: int = 0
    commits: set[str] = field(default_factory=set)
    held: dict[str, bytes] = field(default_factory=dict)

    # looking

    def look(self, _name: str) -> View | None:
        if self.guest is not None:
            return View(self.guest.power, False, False, self.guest.xml, describe(self.guest.xml))
        return View(Power.OFF, False, False, self.defined, describe(self.defined)) if self.defined else None

    def definition(self, _name: str) -> str:
        return self.defined

    def description_to_keep(self, _name: str) -> str:
        return self.guest.xml if self.guest else self.defined

    def versions(self) -> dict[str, str]:
        return {"libvirt": "9", "qemu": "8"}

    def is_saving(self, _name: str) -> bool:
        return False

    # the machine

    def save(self, _name: str, path: str) -> None:
        """The memory first and durable, then its first bytes, which say that it is whole."""
        guest = self._running()
        self.write()
        for held in list(self.held):
            self._write_out(Path(held))
        kept = {"memory": guest.memory, "disks": {t: c.decode() for t, c in self._content().items()}, "xml": guest.xml}
        Path(path).write_bytes(_SAVING + json.dumps(kept).encode())
        descriptor = os.open(path, os.O_RDWR)
        os.fdatasync(descriptor)
        os.pwrite(descriptor, _SAVED, 0)
        os.close(descriptor)
        self.guest = None

    def saved_description(self, path: str) -> str:
        return str(saved(Path(path))["xml"])

    def restore(self, path: str, xml: str, power: Power) -> None:
        kept = saved(Path(path))
        self._begin(kept["memory"], xml)
        found = {target: content.decode() for target, content in self._content().items()}
        if found != kept["disks"]:
            raise Corrupted(f"the memory {kept['memory']} of {kept['disks']} came back over {found}")
        self._let(power)

    def start(self, _name: str, *, paused: bool = False) -> None:
        backing = {disk.target: parts(Path(str(disk.source)))[1] for disk in describe(self.defined).disks}
        xml = with_chain(self.defined, {target: path for target, path in backing.items() if path})
        self._begin("fresh", xml)
        self._let(Power.PAUSED if paused else Power.RUNNING)

    def resume(self, _name: str) -> None:
        self._running()
        self._let(Power.RUNNING)

    def destroy(self, _name: str) -> None:
        self._running()
        self.guest = None

    def define(self, xml: str) -> None:
        self.defined = xml

    def power_off(self) -> None:
        """The power of the whole node fails."""
        self.guest = None
        self.commits.clear()
        self.held.clear()

    def write(self) -> None:
        """A guest that runs writes, and flushes what it wrote."""
        if self.guest is not None and self.guest.power is Power.RUNNING:
            self.writes += 1
            for disk in describe(self.guest.xml).disks:
                path = Path(str(disk.source))
                self._write_out(path)
                data, backing = parts(path)
                seen = len(self._content()[disk.target])
                write_in_place(path, image(data.ljust(seen, b"\0") + b"+%d" % self.writes, backing))
                self.acknowledged[disk.target] += b"+%d" % self.writes

    def _let(self, power: Power) -> None:
        self._running().power = power
        self.write()

    def _begin(self, memory: str, xml: str) -> None:
        if self.guest is not None:
            raise HostFailure("libvirt: domain is already active")
        for disk in describe(xml).disks:
            for path in disk.chain:
                if not Path(path).exists():
                    raise HostFailure(f"libvirt: {path} is not there")
        self.guest = Guest(memory, Power.PAUSED, xml)
        for target, content in self._content().items():
            if not content.startswith(self.acknowledged[target]):
                raise Corrupted(f"{target} has lost what was acknowledged: {self.acknowledged[target]!r}: {content!r}")
            self.acknowledged[target] = content  # more may have come to the disk than was waited for

    def _running(self) -> Guest:
        if self.guest is None:
            raise HostFailure("libvirt: domain is not running")
        return self.guest

    def _content(self) -> dict[str, bytes]:
        """What it reads over the chains that its XML names; zeros, that is nothing, where they end too early."""
        disks = describe(self._running().xml).disks
        return {disk.target: reduce(over, map(self._own, disk.chain)) for disk in disks}

    def _own(self, path: str) -> bytes:
        return self.held[path] if path in self.held else parts(Path(path))[0]

    # block jobs: each has done its work as soon as it is asked for; a commit stays until it is pivoted

    def job(self, _name: str, target: str) -> Job | None:
        return Job(is_pull=False, is_commit=True, done=0) if target in self.commits else None

    def pull(self, _name: str, target: str, _bandwidth: int) -> None:
        """The backing file's name goes; where the data lies is known to QEMU alone until somebody flushes."""
        guest, path = self._running(), self._source(target)
        whole, (own, _) = reads_as(path), parts(path)
        write_in_place(path, image(own))
        self.held[str(path)] = whole
        guest.xml = with_sources(guest.xml, {target: str(path)})

    def flush(self, _name: str, path: str) -> None:
        self._running()
        self._write_out(Path(path))

    def _write_out(self, path: Path) -> None:
        if (whole := self.held.pop(str(path), None)) is not None:
            write_in_place(path, image(whole))

    def wait_for_job(self, _name: str, _target: str, _progress: Callable[..., None]) -> None:
        self.write()

    def freeze(self, _name: str, overlays: Mapping[str, str], memory: str | None, *, quiesce: bool = False) -> None:
        guest = self._running()
        if memory is not None:
            self.save("", memory)
            self.guest = guest
        backing = {target: str(self._source(target)) for target in overlays}
        for target, path in overlays.items():
            Path(path).write_bytes(b"")
            write_in_place(Path(path), image(b"", backing[target]))
            _sync(Path(path).parent)  # on Linux's filesystems the first flush makes a new file's name durable
        self.defined = with_sources(self.defined, overlays)
        guest.xml = with_chain(with_sources(guest.xml, overlays), backing)
        self.write()

    @contextmanager
    def limited_agent(self, _name: str, _seconds: int) -> Iterator[bool]:
        yield False

    def commit(self, _name: str, target: str, _base: str, _bandwidth: int) -> None:
        overlay = self._source(target)
        _, backing = parts(overlay)
        write_in_place(Path(backing), image(reads_as(overlay)))
        self.commits.add(target)

    def wait_until_ready(self, _name: str, target: str, _progress: Callable[..., None]) -> bool:
        return target in self.commits

    def pivot(self, _name: str, target: str) -> None:
        guest, overlay = self._running(), self._source(target)
        _, backing = parts(overlay)
        self.commits.discard(target)
        guest.xml = with_sources(guest.xml, {target: backing})
        self.defined = with_sources(self.defined, {target: backing})
        self.write()

    def _source(self, target: str) -> Path:
        return next(Path(str(disk.source)) for disk in describe(self._running().xml).disks if disk.target == target)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def saved(path: Path) -> dict[str, Any]:
    """A memory, whole."""
    content = path.read_bytes() if path.exists() else b""
    if not content.startswith(_SAVED):
        raise HostFailure("libvirt: save image is incomplete")
    return dict(json.loads(content[len(_SAVED) :]))
