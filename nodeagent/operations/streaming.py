"""Makes an image whole: its backing file is streamed into it, by QEMU while the machine runs, by qemu-img while it is
off.

Success is what the image's header says, never a job's end: a pull that "completed" may have done nothing. And what the
header says holds only once QEMU has written out the rest. So a mark beside the backing file says which image is being
made whole; where that lost the name with the mark still there, and QEMU died, the name is put back and all is done
again. Called by merge, and by the snapshot to take a swap back.
"""

import os
from collections.abc import Callable
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure, TookTooLong
from nodeagent.host.folders import Access, open_folder, remove_file
from nodeagent.host.hypervisor import Job
from nodeagent.operations.following import refuse_if_gone
from nodeagent.operations.settling import let_settle
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Host
from vmkeep.contract.errors import TryLater

_ROUNDS = 5  # a machine may be switched on or off between looking and acting, but not forever


def _silent(_job: Job) -> None:
    """For callers that show nothing."""


def make_whole(host: Host, order: Order, disk: OrderDisk, progress: Callable[[Job], None] = _silent) -> None:
    """Return when the image names no backing file any more and is on the disk; HostFailure where that cannot be had."""
    path, last = PurePosixPath(disk.path), "it was switched on and off too often"
    below, is_flattened = _half_done(host, order, disk), False
    for _ in range(_ROUNDS):
        backing, view = backing_of(host, disk), host.hypervisor.look(order.machine)
        is_active = view is not None and view.is_active
        if backing is None and below is None:
            return
        refuse_if_gone(order, host, view)
        try:
            if backing is None and (is_active or is_flattened):
                _write_out(host, order, disk, is_active=is_active)
                remove_file(_mark_of(str(below)), host.roots)
                return
            if backing is None:  # QEMU may have died before all was on the disk
                host.images.relink(path, PurePosixPath(str(below)))
                continue
            below = backing
            _mark(host, disk, below)
            if is_active:
                _pull(host, order, disk, progress)
            else:
                host.images.flatten(path, order.bandwidth_off)
                is_flattened = True
        except TookTooLong:
            raise
        except HostFailure as why:
            last = str(why)
            let_settle(host, order)
    raise HostFailure(f"the image {disk.path} still names a backing file, or may not be on the disk: {last}")


def _mark_of(below: str) -> PurePosixPath:
    path = PurePosixPath(below)
    return path.parent / f".{path.name}.merging"


def _mark(host: Host, disk: OrderDisk, below: str) -> None:
    """Note beside what lies below which image is made whole; durable when it returns."""
    mark = _mark_of(below)
    with open_folder(mark.parent, host.roots) as retain:
        retain.write(mark.name, _inode(host, disk).encode(), Access(mode=0o600))


def _half_done(host: Host, order: Order, disk: OrderDisk) -> str | None:
    """The image in retain that this very one was being made whole from, whatever its header says by now."""
    below = str(order.paths.retain / disk.kept)
    mark = _mark_of(below)
    try:
        with open_folder(mark.parent, host.roots) as retain:
            return below if retain.read(mark.name).decode() == _inode(host, disk) else None
    except FileNotFoundError:
        return None


def _inode(host: Host, disk: OrderDisk) -> str:
    path = PurePosixPath(disk.path)
    with open_folder(path.parent, host.roots) as images, images.opened(path.name) as descriptor:
        return str(os.fstat(descriptor).st_ino)


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
