"""A machine as the directory describes it."""

import re
from dataclasses import dataclass
from enum import StrEnum

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused

# Becomes a file name, a libvirt domain name and part of a DN: nothing that means something to any of them.
_ALLOWED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALLOWED_TARGET = re.compile(r"[a-z]{2,4}[a-z0-9]{0,4}")


class Power(StrEnum):
    """What a machine is doing; the words of the manifest."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True)
class DirectoryDisk:
    """One sstDisk entry: `target` is libvirt's (vda), `source` an absolute path or None for network disks."""

    target: str
    source: str | None
    device: str = "disk"
    readonly: bool = False

    @property
    def is_backed_up(self) -> bool:
        """Writable disks are; CD-ROMs, floppies and read-only disks are not the machine's own data."""
        return self.device == "disk" and not self.readonly


@dataclass(frozen=True)
class Machine:
    """One machine or template. `pools` and `node` as named in its entry."""

    dn: str
    name: str
    node: str | None
    pools: tuple[str, ...] = ()
    kind: str = "persistent"
    disks: tuple[DirectoryDisk, ...] = ()
    has_backup_subtree: bool = False


def check_name(name: str) -> str:
    """A machine's name if it may become a file name; Refused otherwise."""
    if not _ALLOWED_NAME.fullmatch(name) or ".." in name:
        raise Refused(
            ReturnValue.INVALID_NAME,
            f"the machine name {name!r} is not allowed: use letters, digits, '.', '_' and '-', at most 64, "
            "starting with a letter or digit, without '..'; rename sstVirtualMachine",
        )
    return name


def check_node(machine: Machine) -> str:
    """The node a machine runs on; Refused where its entry names none."""
    if not machine.node:
        raise Refused(
            ReturnValue.UNDEFINED_OBJECT,
            f"{machine.name}: the machine names no node, so no agent can back it up; set sstNode in {machine.dn}",
        )
    return machine.node


def check_target(machine: str, target: str) -> str:
    """A disk's target name if it may become part of a file name; Refused otherwise."""
    if not _ALLOWED_TARGET.fullmatch(target):
        raise Refused(
            ReturnValue.UNSUPPORTED_PARAMETER,
            f"{machine}: the disk target {target!r} is not allowed; sstDisk holds libvirt's target, such as vda",
        )
    return target
