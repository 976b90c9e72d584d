"""What an earlier backup of a machine left: overlays and chains are ended, and files that become no set any more go.

A backup by live or disk has its instant in frozen images; once they are written to again without having been copied,
what its snapshot laid into retain is of no use to anybody. A set whose images are all there stays: it can still be
merged and retained, unless its leaf is gone. Called by snapshot before anything is begun, by merge where it fails, and
by who finds the leaf gone.
"""

import contextlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder, open_folder, remove_empty
from nodeagent.operations.making import NAME as MAKING_NAME
from nodeagent.operations.making import Making, read_making
from nodeagent.operations.overlays import write_back
from nodeagent.operations.streaming import make_whole
from nodeagent.order import Order
from nodeagent.steps import NO_FACTS, Facts, Host
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method
from vmkeep.contract.paths import MANIFEST_NAME
from vmkeep.contract.timestamps import is_timestamp


def finish_earlier(order: Order, host: Host, _facts: Facts) -> Facts:
    """Give the machine its own images, whole, and clear what became of no use with that."""
    own_images(order, host)
    for timestamp in _earlier(order, host):
        other = order.model_copy(update={"timestamp": timestamp})
        if is_lost(other, host) or (timestamp in order.abandoned and not _is_published(other, host)):
            clear(other, host, is_snapshot=timestamp in order.unnoted and not _is_published(other, host))
    return NO_FACTS


def abandon(order: Order, host: Host) -> None:
    """Give the machine its own images, whole, and clear a backup that nobody will finish: its leaf is gone."""
    own_images(order, host)
    if not _is_published(order, host):
        clear(order, host)


def _is_published(order: Order, host: Host) -> bool:
    """Whether the set can be seen; then its files belong to it. HostFailure where that cannot be told."""
    paths = order.paths
    try:
        with open_folder(paths.backup, host.roots) as backup:
            return backup.exists(f"{MANIFEST_NAME}.{order.timestamp}")
    except FileNotFoundError:
        return False


def own_images(order: Order, host: Host) -> None:
    """Return when every disk is its own image, whole: merges that failed or were forgotten are done."""
    for disk in order.disks:
        write_back(host, order, disk)
        make_whole(host, order, disk)


def clear(order: Order, host: Host, *, is_snapshot: bool = False) -> None:
    """Remove what a backup that becomes no set laid into retain, and its copies; the notes last, they lead here.

    Without notes nobody knows what lies there, unless the leaf tells of a snapshot that ended: its node was lost. A set
    that can be seen is whole, and nobody's copies: none of its files goes.
    """
    paths = order.paths
    with contextlib.suppress(FileNotFoundError), open_folder(paths.retain, host.roots) as retain:
        making = _notes(retain, order)
        if making is None and retain.names() and not is_snapshot:
            return
        names = [file.name for file in making.files] if making else _made_by_a_snapshot(order) if is_snapshot else []
        with contextlib.suppress(FileNotFoundError), open_folder(paths.backup, host.roots) as backup:
            if not backup.exists(f"{MANIFEST_NAME}.{order.timestamp}"):
                _remove(backup, [paths.kept_name(name) for name in names])
                backup.sync()
        _remove(retain, names)
        retain.sync()  # the notes last, also on the disk
        retain.remove_made(MAKING_NAME)
        retain.sync()
    remove_empty(paths.backup, paths.backup_root, host.roots)
    remove_empty(paths.retain, paths.retain_root, host.roots)


def _made_by_a_snapshot(order: Order) -> list[str]:
    paths = order.paths
    return [paths.state, paths.xml, paths.ldif, paths.nvram, paths.tpm, *(disk.kept for disk in order.disks)]


def _remove(folder: Folder, names: Sequence[str]) -> None:
    """Only what lies right here, whatever the notes say."""
    for name in names:
        if PurePosixPath(name).name == name:
            folder.remove_made(name)


def _earlier(order: Order, host: Host) -> list[str]:
    """Other backups of the machine that have a directory in retain."""
    try:
        with open_folder(order.paths.retain.parent, host.roots) as machine:
            found = [name for name in machine.names() if is_timestamp(name) and machine.has_folder(name)]
    except FileNotFoundError:
        return []
    return [name for name in found if name != order.timestamp]


def is_lost(order: Order, host: Host) -> bool:
    """Whether a backup by overlays lacks an image for good, once its overlays are written back.

    A copy lies in retain, or was noted when it was complete: the backup directory may be away for a while.
    """
    try:
        with open_folder(order.paths.retain, host.roots) as retain:
            making = _notes(retain, order)
            if making is None:
                return not retain.names()  # power was lost between the last removal in it and its own
            if making.method not in (Method.LIVE, Method.DISK) or making.power is Power.OFF:
                return False
            images = [file.name for file in making.files if file.role == "disk"]
            return any(not retain.exists(name) and not making.knows(name) for name in images)
    except FileNotFoundError:
        return False


def _notes(retain: Folder, order: Order) -> Making | None:
    """What the snapshot noted, None where that is gone or speaks of something else."""
    try:
        making = read_making(retain)
    except HostFailure:
        return None
    return making if (making.machine, making.timestamp) == (order.machine, order.timestamp) else None
