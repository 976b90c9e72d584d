"""An order of one machine, and the host it is carried out on; a test names only what it is about."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab import programs
from nodeagent.host.description import describe
from nodeagent.host.hypervisor import View
from nodeagent.host.images import Images
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Host
from nodeagent.unretained import Unretained
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

TIMESTAMP = "20260101T000000Z"
_XML = "<domain><name>vm</name><uuid>u</uuid><memory>1</memory></domain>"


def order_in(folder: Path, mode: Mode, **given: Any) -> Order:
    """Of a running machine with the disk images/d.qcow2; retain and backup directory are `folder`'s own."""
    timestamp = given.pop("timestamp", TIMESTAMP)
    fields: dict[str, Any] = {
        "power": Power.RUNNING,
        "disks": (disk_in(folder),),
        "retain_root": str(folder / "retain"),
        "backup_root": str(folder / "backup"),
    }
    return Order(
        leaf_dn=f"ou={timestamp}",
        machine="vm",
        timestamp=timestamp,
        mode=mode,
        uuid="u",
        place=("vm-persistent", "p"),
        **fields | given,
    )


def disk_in(folder: Path, target: str = "vda", name: str = "d.qcow2", size: int = 0) -> OrderDisk:
    return OrderDisk(target=target, path=str(folder / "images" / name), kept=name, size=size)


def plain_image(folder: Path) -> Path:
    """The image of `disk_in`, empty, beside a backup directory."""
    for name in ("images", "backup"):
        (folder / name).mkdir()
    image = folder / "images/d.qcow2"
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"])
    return image


def host_at(folder: Path, hypervisor: object = None) -> Host:
    """A host where the machine is off, or with what stands in for libvirt; only `folder` is allowed."""
    off = View(Power.OFF, stopped_by_itself=False, moved_away=False, xml=_XML, description=describe(_XML))
    known: Any = hypervisor or SimpleNamespace(look=lambda _name: off)
    return Host("n1", known, Images(), [str(folder)], {}, Unretained(folder / "unretained"))
