"""The overlays a machine writes to while its images lie frozen: their names, and how they are written back.

An overlay lies beside its image as `.<image>.<timestamp>`. Written back means: live and persistent description name the
image again, which is whole. Success is what libvirt and the header say, never a job's end. Called by snapshot, merge
and leftovers.

An overlay that is named no more is removed where nothing is lost with it: it is empty, or a mark beside it, made just
before the pivot, says that its content is in the image. Else somebody defined the machine anew over its image, or a
libvirt that was killed in the instant does not know what QEMU writes to: such a file is never removed.
"""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from nodeagent.host.description import describe, with_sources
from nodeagent.host.errors import HostFailure, TookTooLong
from nodeagent.host.folders import Access, Folder, names_in, open_folder
from nodeagent.host.hypervisor import Job, View
from nodeagent.operations.following import refuse_if_gone
from nodeagent.operations.settling import let_settle
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Host
from vmkeep.contract.errors import TryLater

_ROUNDS = 5  # a machine may be switched on or off between looking and acting, but not forever
_OVERLAY = re.compile(r"\.(.+)\.\d{8}T\d{6}Z")
_MARK = ".written-back"
_CLOSING_SECONDS, _POLL_SECONDS = 5.0, 0.1


def overlay_name(image: str, timestamp: str) -> str:
    """The overlay's file name, beside its image."""
    return f".{image}.{timestamp}"


def overlay_of(disk: OrderDisk, timestamp: str) -> PurePosixPath:
    """Where one backup's overlay of a disk lies."""
    path = PurePosixPath(disk.path)
    return path.parent / overlay_name(path.name, timestamp)


def image_below(source: str) -> str:
    """The image that a disk's live file is an overlay of, by our naming; the file itself where it is none."""
    path = PurePosixPath(source)
    found = _OVERLAY.fullmatch(path.name)
    return str(path.parent / found.group(1)) if found else source


def overlays_beside(image: PurePosixPath, roots: Sequence[str]) -> list[PurePosixPath]:
    """What lies beside an image as its overlay, by our naming."""
    return [image.parent / name for name in names_in(image.parent, roots) if _lies_over(image, name)]


def is_overlay(name: str) -> bool:
    """Whether a file beside an image is an overlay, by our naming."""
    return _OVERLAY.fullmatch(name) is not None


def silent(_job: Job) -> None:
    """For callers that show nothing."""


def write_back(host: Host, order: Order, disk: OrderDisk, progress: Callable[[Job], None] = silent) -> None:
    """Return when the machine's disk is its own image again and no overlay of ours lies beside it."""
    last, was_in_use = "it was switched on and off too often", False
    for _ in range(_ROUNDS):
        view = host.hypervisor.look(order.machine)
        refuse_if_gone(order, host, view)
        overlay = _overlay_in_use(view, disk)
        if overlay is None:
            _remove_overlays(host, order, disk)
            if was_in_use and view is not None and view.is_halted:
                # Its overlay found no room; its own image takes what it has still to write.
                host.hypervisor.resume(order.machine)
            return
        was_in_use = True
        assert view is not None
        try:
            if view.is_active:
                _commit(host, order, (disk, overlay), progress)
            else:
                _commit_offline(host, order, disk, overlay)
        except TookTooLong:
            raise
        except HostFailure as why:
            last = str(why)
            let_settle(host, order)
    raise HostFailure(f"{disk.target} still writes to an overlay of {disk.path}: {last}")


def _overlay_in_use(view: View | None, disk: OrderDisk) -> PurePosixPath | None:
    """The overlay that the machine has, or would be started on."""
    sources = {known.target: known.source for known in view.description.disks} if view else {}
    source = sources.get(disk.target) or disk.path
    return PurePosixPath(source) if source != disk.path and image_below(source) == disk.path else None


def _commit(
    host: Host, order: Order, written: tuple[OrderDisk, PurePosixPath], progress: Callable[[Job], None]
) -> None:
    """Join the commit that is at work, or start one; pivot when it is ready."""
    disk, overlay = written
    job = host.hypervisor.job(order.machine, disk.target)
    if job is not None and not job.is_commit:
        raise TryLater(f"{order.machine}: somebody else's block job is at work on {disk.target}")
    if job is None:
        _unmark(host, overlay)
        host.hypervisor.commit(order.machine, disk.target, disk.path, order.bandwidth)
    if host.hypervisor.wait_until_ready(order.machine, disk.target, progress):
        _mark(host, overlay)
        host.hypervisor.pivot(order.machine, disk.target)


def _mark(host: Host, overlay: PurePosixPath) -> None:
    """Note beside an overlay that the image holds what it holds, as soon as it is named no more."""
    with open_folder(overlay.parent, host.roots) as images:
        images.write(f"{overlay.name}{_MARK}", b"", Access(mode=0o600))


def _unmark(host: Host, overlay: PurePosixPath) -> None:
    """An earlier commit that did not come to its end said so too early."""
    with open_folder(overlay.parent, host.roots) as images:
        if images.exists(f"{overlay.name}{_MARK}"):
            images.remove(f"{overlay.name}{_MARK}")
            images.sync()


def _commit_offline(host: Host, order: Order, disk: OrderDisk, overlay: PurePosixPath) -> None:
    backing = host.header(overlay).backing_file
    if backing != disk.path:
        raise HostFailure(f"the overlay {overlay} lies over {backing}, not over {disk.path}; somebody else changed it")
    host.images.commit(overlay, order.bandwidth_off)
    _mark(host, overlay)
    definition = host.hypervisor.definition(order.machine)
    sources = {known.target: known.source for known in describe(definition).disks} if definition else {}
    if sources.get(disk.target) == str(overlay):
        host.hypervisor.define(with_sources(definition, {disk.target: disk.path}))


def _remove_overlays(host: Host, order: Order, disk: OrderDisk) -> None:
    """What lies beside the image, is in use no more, and whose content is in the image."""
    path = PurePosixPath(disk.path)
    with open_folder(path.parent, host.roots) as images:
        left = [name for name in images.names() if _lies_over(path, name.removesuffix(_MARK))]
        overlays = [name for name in left if not name.endswith(_MARK)]
        for name in overlays:
            _refuse_to_lose(host, order, images, name)
        _remove_durably(images, overlays)
        _remove_durably(images, [name for name in left if name not in overlays])  # they say that overlays may go


def _remove_durably(images: Folder, names: Sequence[str]) -> None:
    for name in names:
        images.remove(name)
    if names:
        images.sync()


def _lies_over(image: PurePosixPath, name: str) -> bool:
    found = _OVERLAY.fullmatch(name)
    return found is not None and found.group(1) == image.name


def _refuse_to_lose(host: Host, order: Order, images: Folder, name: str) -> None:
    path = images.path / name
    if not _is_closed(host, images, name):
        raise HostFailure(
            f"{path} is open in a QEMU, and libvirt does not say so; leave it where it is, shut {order.machine} down "
            f"from within, write it back with: qemu-img commit -f qcow2 {path}, and remove it"
        )
    if not host.images.may_hold_data(images, name) or images.exists(f"{name}{_MARK}"):
        return
    raise HostFailure(
        f"{path} holds what {order.machine} wrote while its disks were frozen, and it is not defined over that file "
        f"any more; where it has not run since, write it back with: qemu-img commit -f qcow2 {path}; then remove it"
    )


def _is_closed(host: Host, images: Folder, name: str) -> bool:
    """Whether nobody has an overlay open; after a pivot QEMU may take a moment to let go."""
    deadline = time.monotonic() + _CLOSING_SECONDS
    while host.images.is_open(images, name):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)  # locks tell nobody
    return True
