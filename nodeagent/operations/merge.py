"""Merge: make every live image whole, so that the set's copy is no longer referred to.

With method save, one step a disk. Where the set will only be renamed into the backup directory, its digest is taken
meanwhile: QEMU reads the same blocks, so the page cache serves both and retain need not read anything. Nothing to take
back: a chain left half streamed is whole and can be streamed on.

With the methods live and disk, `copy` for every disk, then `commit` for every disk: the machine writes to overlays over
frozen images. Clones are read for their `digest` after that. Taking back writes the overlays back; where that ends the
set's instant, nothing of it stays. A set whose notes are gone cannot be made: the machine gets its own images again.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from nodeagent.host.copying import Content, Pace, Progress, digest_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder
from nodeagent.host.hypervisor import Job
from nodeagent.operations.frozen_copies import FrozenCopies
from nodeagent.operations.leftovers import clear, is_lost, own_images
from nodeagent.operations.making import read_making, write_making
from nodeagent.operations.overlays import write_back
from nodeagent.operations.streaming import backing_of, make_whole
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import LEFT, NO_FACTS, Facts, Host, Step
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused


def merge(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps of a merge."""
    if order.unmade:
        doing = "see to it that the machine has its own images again"
        return (Step("whole", doing, ReturnValue.CANNOT_MERGE, partial(_make_whole_and_refuse, order, host)),)
    if order.route.freezes:
        return _thaw_disks(order, host)
    return tuple(_merge_disk(order, host, disk) for disk in order.disks)


def _thaw_disks(order: Order, host: Host) -> tuple[Step, ...]:
    """Copy every frozen image, then write every overlay back; whatever fails, the overlays are written back."""
    copies = FrozenCopies(order, host)
    frozen = (
        Step("frozen", "see to it that the machine has its own images again", ReturnValue.CANNOT_MERGE, _nothing_yet)
        .undone_by(partial(_take_back, order, host))
        .guarding_machine()
    )
    copied = (
        Step(f"copy {disk.target}", f"copy {disk.path}", ReturnValue.CANNOT_COPY_IMAGE, partial(copies.copy, disk))
        .undone_by(partial(copies.remove, disk))
        for disk in order.disks
    )  # fmt: skip
    committed = (
        Step(
            f"commit {disk.target}",
            f"write the overlay of {disk.target} back",
            ReturnValue.CANNOT_MERGE,
            partial(_write_back, order, host, disk),
        )
        for disk in order.disks
    )
    digested = (
        Step(
            f"digest {disk.target}",
            f"read the clone of {disk.path}",
            ReturnValue.CANNOT_MERGE,
            partial(copies.digest, disk),
        )
        for disk in order.disks
    )
    return (frozen, *copied, *committed, *(digested if order.route.clones else ()))


def _nothing_yet(_facts: Facts) -> Facts:
    """The step is there for its way back."""
    return NO_FACTS


def _write_back(order: Order, host: Host, disk: OrderDisk, _facts: Facts) -> Facts:
    write_back(host, order, disk, Growth(host.progress))
    return NO_FACTS


def _take_back(order: Order, host: Host, _facts: Facts) -> Facts:
    try:
        for disk in order.disks:
            write_back(host, order, disk)
    except Refused as why:  # it was moved, over its overlays: they are written back where it is
        return {LEFT: why.sentence}
    if is_lost(order, host):
        clear(order, host)
    return NO_FACTS


def _make_whole_and_refuse(order: Order, host: Host, _facts: Facts) -> Facts:
    own_images(order, host)
    raise Refused(
        ReturnValue.MISSING_FILES,
        f"{order.machine}: the backup {order.timestamp} cannot be finished: {order.unmade}; the machine has its own "
        "images again, back it up again; what is left of this backup goes with its deletion",
    )


def _merge_disk(order: Order, host: Host, disk: OrderDisk) -> Step:
    return Step(
        f"merge {disk.target}",
        f"merge the image of {disk.target}",
        ReturnValue.CANNOT_MERGE,
        partial(_apply, order, host, disk),
    )


def _apply(order: Order, host: Host, disk: OrderDisk, _facts: Facts) -> Facts:
    _refuse_foreign_chain(order, host, disk)
    given_up = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"digest-{order.machine}") as reader:
        reading = reader.submit(_digest, order, host, disk, given_up) if order.route.renames else None
        try:
            make_whole(host, order, disk, Growth(host.progress))
        except BaseException:
            given_up.set()
            raise
        if reading is not None and (content := reading.result()) is not None:
            _note_digest(order, host, disk, content)
    return NO_FACTS


def _refuse_foreign_chain(order: Order, host: Host, disk: OrderDisk) -> None:
    backing = backing_of(host, disk)
    expected = str(order.paths.retain / disk.kept)
    if backing not in (None, expected):
        raise HostFailure(f"the image {disk.path} lies over {backing}, not over {expected}; somebody else changed it")


def _digest(order: Order, host: Host, disk: OrderDisk, given_up: threading.Event) -> Content | None:
    """None where an earlier attempt has noted it."""
    pace = Pace(order.bandwidth << 20, host.stop)  # QEMU's own
    with open_folder(order.paths.retain, host.roots) as retain:
        if read_making(retain).knows(disk.kept):
            return None
        return digest_file(retain, disk.kept, given_up=given_up, pace=pace)


def _note_digest(order: Order, host: Host, disk: OrderDisk, content: Content) -> None:
    with open_folder(order.paths.retain, host.roots) as retain:
        write_making(retain, read_making(retain).with_content(disk.kept, content))


class Growth:
    """Turns a job's position into bytes gained, which is what progress adds up."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen = 0

    def __call__(self, job: Job) -> None:
        """Note a job's position."""
        if job.done > self._seen:
            self._progress(job.done - self._seen)
            self._seen = job.done
