"""Makes an image whole: its backing file is streamed into it, by QEMU while the machine runs, by qemu-img while it is
off.

Success is what the image's header says, never a job's end: a pull that "completed" may have done nothing. And what the
header says holds only once QEMU has written out the rest; where it died before, the backing file's name is put back and
all is done again. Called by merge, and by the snapshot to take a swap back.
"""

import os
from collections.abc import Callable
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder
from nodeagent.host.hypervisor import Job
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Host
from vmkeep.contract.errors import TryLater

_ROUNDS = 5  # a machine may be switched on or off between looking and acting, but not forever


def _silent(_job: Job) -> None:
    """For callers that show nothing."""


def make_whole(host: Host, order: Order, disk: OrderDisk, progress: Callable[[Job], None] = _silent) -> None:
    """Return when the image names no backing file any more and is on the disk; HostFailure where that cannot be had."""
    path, last = PurePosixPath(disk.path), "it was switched on and off too often"
    below, is_flattened = _may_have_been_over(host, order, disk), False
    for _ in range(_ROUNDS):
        backing, view = backing_of(host, disk), host.hypervisor.look(order.machine)
        is_active = view is not None and view.is_active
        if backing is None and below is None:
            return
        try:
            if backing is None and (is_active or is_flattened):
                _write_out(host, order, disk, is_active=is_active)
                return
            if backing is None:  # QEMU may have died before all was on the disk
                host.images.relink(path, PurePosixPath(str(below)))
                continue
            below = backing
            if is_active:
                _pull(host, order, disk, progress)
            else:
                host.images.flatten(path)
                is_flattened = True
        except HostFailure as why:
            last = str(why)
    raise HostFailure(f"the image {disk.path} still names a backing file, or may not be on the disk: {last}")


def _may_have_been_over(host: Host, order: Order, disk: OrderDisk) -> str | None:
    """The image in retain that this one was put over, whatever its header says by now; a clone there never was."""
    path, below = PurePosixPath(disk.path), order.paths.retain / disk.kept
    if order.route.clones or order.route.freezes:
        return None
    try:
        with open_folder(path.parent, host.roots) as images, open_folder(below.parent, host.roots) as retain:
            is_another = retain.exists(below.name) and not images.is_same(path.name, retain, below.name)
    except FileNotFoundError:
        return None
    return str(below) if is_another else None


def _write_out(host: Host, order: Order, disk: OrderDisk, *, is_active: bool) -> None:
    """QEMU first, which may hold tables back, then the system."""
    if is_active:
        host.hypervisor.flush(order.machine, disk.path)
    path = PurePosixPath(disk.path)
    with open_folder(path.parent, host.roots) as images, images.opened(path.name) as descriptor:
        os.fsync(descriptor)


def backing_of(host: Host, disk: OrderDisk) -> str | None:
    """The file an image lies over, None where it is whole."""
    return host.header(PurePosixPath(disk.path)).backing_file


def _pull(host: Host, order: Order, disk: OrderDisk, progress: Callable[[Job], None]) -> None:
    """Join the pull that is at work, or start one, and wait for its end."""
    job = host.hypervisor.job(order.machine, disk.target)
    if job is not None and not job.is_pull:
        raise TryLater(f"{order.machine}: somebody else's block job is at work on {disk.target}")
    if job is None:
        host.hypervisor.pull(order.machine, disk.target, order.bandwidth)
    host.hypervisor.wait_for_job(order.machine, disk.target, progress)
