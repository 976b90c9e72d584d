"""One machine's memory in a file: whether it is whole, and how a machine is brought back from it exactly once.

Memory must never meet disks that are newer than it. So a machine comes back paused, then the file goes, and only then
does the machine run on: whoever is killed in between finds either a paused machine or no file.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeAlias

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import open_folder, remove_file
from nodeagent.host.hypervisor import View, is_complete_state
from nodeagent.host.state_file import description_inside
from nodeagent.order import Order, OrderDisk
from nodeagent.restoring.allowed import peculiarities
from nodeagent.steps import LEFT, NO_FACTS, Facts, Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.machine import Power

Chains: TypeAlias = Mapping[str, tuple[str, ...]]

_POLL_SECONDS = 0.2
_FOREIGN_SAVE_SECONDS = 1800.0
NO_MEMORY = "there is no memory it could go on from"


def is_complete(host: Host, path: PurePosixPath) -> bool:
    """Whether a state file is there and was written to its end."""
    try:
        with open_folder(path.parent, host.roots) as folder, folder.opened(path.name) as descriptor:
            return is_complete_state(os.pread(descriptor, 16, 0))
    except FileNotFoundError:
        return False


def description(host: Host, path: PurePosixPath, peculiar: Sequence[str] | None) -> str:
    """The XML inside a state file of ours, read by libvirt only once it names nothing but what the machine had.

    libvirt runs the emulator named there, and a file of ours lies where others may write. `peculiar` as in `Order`.
    """
    with open_folder(path.parent, host.roots) as folder, folder.opened(path.name) as descriptor:
        inside = description_inside(descriptor, str(path)) if peculiar is not None else ""
    foreign = [what for what in peculiarities(inside) if what not in peculiar] if peculiar is not None else []
    if foreign:
        raise HostFailure(f"{path} is not what was saved, somebody changed it: {'; '.join(foreign)}")
    return host.hypervisor.saved_description(str(path))


def refuse_if_changed(host: Host, order: Order) -> None:
    """Refused where the machine is not what it was when it was looked at: its memory would not be trusted later."""
    if (
        order.peculiar is not None
        and peculiarities(host.hypervisor.description_to_keep(order.machine)) != order.peculiar
    ):
        raise Refused(
            ReturnValue.WRONG_STATE_INFORMATION,
            f"{order.machine} was given other devices while it was about to be saved; nothing was touched, ask again",
        )


def is_older_than_disks(host: Host, path: PurePosixPath, disks: Sequence[OrderDisk]) -> bool:
    """Whether an image was written to after the memory was: somebody ran the machine in between."""
    saved = _written(host, path)
    images = (_written(host, PurePosixPath(disk.path)) for disk in disks)
    return saved is not None and any(image is not None and image > saved for image in images)


def refuse_if_past(host: Host, order: Order, facts: Facts) -> None:
    """Refused where somebody ran the machine since it was saved: its memory must not meet what its disks are now."""
    state = facts.get("state_path")
    if state and is_older_than_disks(host, PurePosixPath(str(state)), order.disks):
        raise order.started_by_another


def _written(host: Host, path: PurePosixPath) -> int | None:
    """When a file's content last changed, ns; its names, owner and mode may have changed since."""
    try:
        with open_folder(path.parent, host.roots) as folder:
            found = folder.status(path.name)
    except (FileNotFoundError, HostFailure):  # of a file where we may not look, nothing is known
        return None
    return found.st_mtime_ns if found else None


def drop(host: Host, paths: Sequence[PurePosixPath]) -> None:
    """Remove state files; fine where there are none."""
    for path in paths:
        remove_file(path, host.roots)


def wait_for_a_save_without_us(host: Host, machine: str) -> None:
    """A save goes on in libvirt after the agent that started it is gone; return when it is over."""
    deadline = time.monotonic() + _FOREIGN_SAVE_SECONDS
    while host.hypervisor.is_saving(machine):
        if time.monotonic() > deadline:
            raise TryLater(f"{machine} is still being saved")
        time.sleep(_POLL_SECONDS)  # libvirt tells nobody but the one who asked


def bring_back(
    host: Host,
    machine: str,
    power: Power,
    candidates: Sequence[PurePosixPath],
    *,
    is_past: bool,
    peculiar: Sequence[str] | None = None,
) -> Facts:
    """Let a machine that was saved be what it was: from its memory once, never where that `is_past` its disks.

    Tells where it was not its memory that it went on from. `peculiar` as in `Order`.
    """
    view, left = host.hypervisor.look(machine), NO_FACTS
    if view is None or not view.is_active:
        memories = [path for path in ([] if is_past else candidates) if is_complete(host, path)]
        left = _restart(host, machine, view, [(str(path), description(host, path, peculiar)) for path in memories[:1]])
    drop(host, candidates)
    view = host.hypervisor.look(machine)
    if view is not None and view.power is Power.PAUSED and power is Power.RUNNING:
        host.hypervisor.resume(machine)
    return left


def load(host: Host, machine: str, path: str, xml: str, chains: Chains) -> None:
    """Bring a machine back, paused, and prove its images in the stopped QEMU; over others it is stopped again."""
    host.hypervisor.restore(path, xml, Power.PAUSED)
    view = host.hypervisor.look(machine)
    if view is None or not view.is_active:
        raise HostFailure("the machine stopped as soon as it was restored")
    if not is_over(view, chains):
        host.hypervisor.destroy(machine)  # it has not run: nothing is lost
        raise HostFailure("the machine came up over other images than it should, and was stopped before it ran")


def is_over(view: View, chains: Chains) -> bool:
    """Whether QEMU has every disk open over this chain, the live image first; it would read zeros for data else."""
    return all(view.description.chains.get(target) == chain for target, chain in chains.items())


def _restart(host: Host, machine: str, view: View | None, memories: Sequence[tuple[str, str]]) -> Facts:
    """Come back paused: from memory where there is any, a file and its description, else as after a power failure."""
    for path, xml in memories:
        host.hypervisor.restore(path, xml, Power.PAUSED)
        return NO_FACTS
    if view is None:
        return {LEFT: f"{NO_MEMORY}, and libvirt does not know it any more"}
    if view.stopped_by_itself:
        return NO_FACTS
    host.hypervisor.start(machine, paused=True)
    return {LEFT: f"{NO_MEMORY}: it was started anew, as after a power failure"}
