"""Makes an image whole: its backing file is streamed into it, by QEMU while the machine runs, by qemu-img while it is
off.

Success is what the image's header says, never a job's end: a pull that "completed" may have done nothing. Called by
merge, and by the snapshot to take a swap back.
"""

from collections.abc import Callable
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import Job
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Host
from vmkeep.contract.errors import TryLater

_ROUNDS = 5  # a machine may be switched on or off between looking and acting, but not forever


def _silent(_job: Job) -> None:
    """For callers that show nothing."""


def make_whole(host: Host, order: Order, disk: OrderDisk, progress: Callable[[Job], None] = _silent) -> None:
    """Return when the image names no backing file any more; HostFailure where that cannot be had."""
    last = "it was switched on and off too often"
    for _ in range(_ROUNDS):
        if backing_of(host, disk) is None:
            return
        view = host.hypervisor.look(order.machine)
        try:
            if view is not None and view.is_active:
                _pull(host, order, disk, progress)
            else:
                host.images.flatten(PurePosixPath(disk.path))
        except HostFailure as why:
            last = str(why)
    if backing_of(host, disk) is not None:
        raise HostFailure(f"the image {disk.path} still names a backing file: {last}")


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
