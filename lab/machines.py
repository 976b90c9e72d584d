"""Lab machines: what one is to be like, its disk images and its libvirt description. Used by the cluster."""

import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from lab import programs
from lab.errors import LabError
from lab.guest_image import GuestImage
from lab.hypervisor import Node

KINDS = {"linux": 128, "bios": 4, "uefi": 128}  # and the memory each gets, MiB
STATES = ("running", "paused", "off")
AGENT_CHANNEL = "org.qemu.guest_agent.0"
_MIB = 1 << 20
_SECTOR = 512
_LINUX = 0x83  # type of a partition
PARTITION_START, PARTITION_MIB = 8, 16  # the ticker's ring and pattern end before
_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is to be like. Sizes in MiB; memory 0 means what fits the kind. `card`: a network card.

    `equal_basenames` puts disks of one name into different directories, `content_mib` are random bytes on every disk,
    `fill_mib` of a Linux guest's memory are filled, `storage` is the first path part below the image root. `agent`: a
    guest agent runs in a Linux guest, and its first disk has a partition with a mounted ext4 that it writes to.
    `period_ms`: how often a Linux guest counts and writes; 10 where the length of a silence matters.
    """

    kind: str = "linux"
    state: str = "running"
    disks: int = 1
    disk_mib: int = 64
    memory_mib: int = 0
    content_mib: int = 0
    fill_mib: int = 0
    equal_basenames: bool = False
    tpm: bool = False
    card: bool = False
    agent: bool = False
    period_ms: int = 100
    storage: str = "vm-persistent"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LabError(f"a machine's kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.state not in STATES:
            raise LabError(f"a machine's state is one of {', '.join(STATES)}, not {self.state!r}")
        if self.agent and self.kind != "linux":
            raise LabError(f"only a Linux machine has a guest agent, not one of kind {self.kind!r}")
        if self.kind == "linux" and self.disk_mib < self.content_start:
            raise LabError(f"a Linux machine's disks need {self.content_start} MiB or more, not {self.disk_mib}")

    @property
    def memory(self) -> int:
        """Memory in MiB."""
        return self.memory_mib or KINDS[self.kind]

    @property
    def content_start(self) -> int:
        """Where random bytes may begin on a disk, in MiB: behind what the guest uses itself."""
        return PARTITION_START + PARTITION_MIB if self.agent else PARTITION_START


@dataclass(frozen=True)
class Machine:
    """A machine of the lab. `disks` in the order vda, vdb, …; `serial` is the host's file of what the guest printed."""

    name: str
    node: Node
    spec: MachineSpec
    uuid: str
    disks: tuple[Path, ...]
    serial: Path

    @property
    def targets(self) -> tuple[str, ...]:
        """libvirt's names of the disks."""
        return tuple(f"vd{chr(ord('a') + number)}" for number in range(len(self.disks)))

    @property
    def nvram(self) -> Path:
        """The firmware's variables of a UEFI machine."""
        return self.node.libvirt_state / "qemu/nvram" / f"{self.name}_VARS.fd"


def plan_machine(name: str, node: Node, spec: MachineSpec) -> Machine:
    """A machine with the places of its files; nothing is made yet."""
    folder = node.images / spec.storage / node.storage_pool
    names = [name, *(f"{name}-vd{chr(ord('a') + number)}" for number in range(1, spec.disks))]
    if spec.equal_basenames:
        disks = tuple(folder / each / "disk.qcow2" for each in names)
    else:
        disks = tuple(folder / f"{each}.qcow2" for each in names)
    return Machine(name, node, spec, str(uuid.uuid4()), disks, node.folder / "serial" / f"{name}.log")


def create_images(machine: Machine) -> None:
    """Make the machine's disk images."""
    for path in machine.disks:
        path.parent.mkdir(parents=True, exist_ok=True)
        programs.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{machine.spec.disk_mib}M"])
        if machine.spec.agent and path == machine.disks[0]:
            _partition(path, machine.spec.disk_mib)
        _fill(path, machine.spec)
        path.chmod(0o660)


def _partition(path: Path, disk_mib: int) -> None:
    """Give an image a partition with an empty ext4: what a freeze of the guest's filesystems can take hold of."""
    raw = path.with_suffix(".raw")
    start, size = PARTITION_START * _MIB // _SECTOR, PARTITION_MIB * _MIB // _SECTOR
    try:
        with raw.open("wb") as out:
            out.truncate(disk_mib * _MIB)
            out.seek(446)  # the partition table of a master boot record
            out.write(struct.pack("<4xB3xII", _LINUX, start, size))
            out.seek(510)
            out.write(b"\x55\xaa")
        options = ["-q", "-F", "-b", "1024", "-E", f"offset={PARTITION_START * _MIB}"]
        programs.run(["mke2fs", "-t", "ext4", *options, raw, f"{PARTITION_MIB}M"])
        programs.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path])
    finally:
        raw.unlink(missing_ok=True)


def _fill(path: Path, spec: MachineSpec) -> None:
    """Write random bytes behind the guest's own regions of an image."""
    mib = spec.content_mib
    if mib == 0:
        return
    chunks = path.with_suffix(".chunk")
    try:
        with chunks.open("wb") as out:
            for _ in range(mib):
                out.write(os.urandom(_MIB))
        command = f"write -s {chunks} {spec.content_start}M {mib}M"
        programs.run(["qemu-io", "-f", "qcow2", "-t", "writeback", "-c", command, path], limit=300)
    finally:
        chunks.unlink(missing_ok=True)


def domain_xml(machine: Machine, image: GuestImage | None) -> str:
    """The libvirt description of a machine; `image` is what a Linux guest boots from."""
    spec = machine.spec
    architecture = "q35" if spec.kind == "uefi" else "pc"
    parts = [
        f"<name>{machine.name}</name><uuid>{machine.uuid}</uuid>",
        f"<memory unit='MiB'>{spec.memory}</memory><vcpu>1</vcpu>",
        f"<os><type arch='x86_64' machine='{architecture}'>hvm</type>{_boot(machine, image)}</os>",
        "<features><acpi/></features><clock offset='utc'/>",
        "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>",
        f"<devices>{''.join(_devices(machine))}</devices>",
    ]
    return f"<domain type='qemu'>{''.join(parts)}</domain>"


def _boot(machine: Machine, image: GuestImage | None) -> str:
    if machine.spec.kind == "uefi":
        return (
            f"<loader readonly='yes' type='pflash'>{_FIRMWARE}</loader>"
            f"<nvram template={quoteattr(str(_VARIABLES))}>{machine.nvram}</nvram>"
        )
    if image is None:
        return ""
    seed = uuid.UUID(machine.uuid).int % 10**9
    words = f"console=ttyS0 quiet loglevel=1 mitigations=off nokaslr no_timer_check seed={seed}"
    words += f" us={machine.spec.period_ms * 1000} fill={machine.spec.fill_mib} disks={','.join(machine.targets)}"
    words += f" mounted={machine.targets[0]}1" if machine.spec.agent else ""
    return f"<kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd><cmdline>{words}</cmdline>"


def _devices(machine: Machine) -> list[str]:
    devices = ["<emulator>/usr/bin/qemu-system-x86_64</emulator>"]
    devices += [
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file={quoteattr(str(path))}/><target dev='{target}' bus='virtio'/></disk>"
        for target, path in zip(machine.targets, machine.disks, strict=True)
    ]
    devices.append(
        f"<serial type='file'><source path={quoteattr(str(machine.serial))} append='on'/><target port='0'/></serial>"
    )
    devices.append("<controller type='usb' model='none'/><memballoon model='none'/>")
    if machine.spec.agent:
        devices.append(f"<channel type='unix'><target type='virtio' name='{AGENT_CHANNEL}'/></channel>")
    if machine.spec.card:
        devices.append("<interface type='user'><model type='virtio'/></interface>")
    if machine.spec.tpm:
        devices.append("<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>")
    return devices
