"""Looks before a deletion: refuses what must stay. Reads only; called by the surveyor."""

from datetime import UTC, datetime
from pathlib import PurePosixPath

from nodeagent.host.errors import HostFailure, NotAnImage
from nodeagent.host.folders import open_folder
from nodeagent.operations.finding import machine_places, names_of, places_of
from nodeagent.order import Order
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Machine
from vmkeep.contract.names import Attribute
from vmkeep.contract.paths import MACHINE_TYPES, MANIFEST_NAME
from vmkeep.contract.plan import Plan
from vmkeep.contract.pruning import why_held
from vmkeep.contract.timestamps import is_timestamp
from vmkeep.directory.catalogue import LEAVES, Catalogue
from vmkeep.directory.port import AllOf, Equals


def survey_deletion(catalogue: Catalogue, host: Host, leaf: Leaf, plan: Plan, floor: int) -> PurePosixPath | None:
    """Which directory goes, None where the backup came to no file; Refused where it must stay.

    So many other good sets, `floor`, must be left; 0 where the last one may go as well.
    """
    _refuse_if_held(catalogue, leaf, host)
    if leaf.pruned:
        _refuse_while_restored(catalogue, leaf)
    _refuse_if_restored_from(catalogue, leaf)
    directory = _directory(leaf, plan, host)
    if floor:
        _refuse_last(leaf, _complete_sets(leaf, directory, plan, host), floor, host)
    return directory


def refuse_if_in_use(order: Order, machine: Machine, host: Host) -> None:
    """A live image that still lies over what is to be removed would lose its data with it."""
    for disk in machine.disks:
        if disk.is_backed_up and disk.source:
            backing = _backing_of(order, disk.source, host)
            if backing is not None and PurePosixPath(backing).parent == order.paths.retain:
                raise Refused(
                    ReturnValue.UNMERGED_IMAGE,
                    f"{order.machine}: the image {disk.source} still lies over {backing} of this backup; "
                    "back the machine up again, which makes it whole, then delete",
                )


def _backing_of(order: Order, image: str, host: Host) -> str | None:
    """What an image lies over; Refused where that cannot be told, of one that is marked corrupt for example."""
    try:
        return host.header(PurePosixPath(image)).backing_file
    except (FileNotFoundError, NotAnImage):
        return None
    except HostFailure as why:
        raise Refused(
            ReturnValue.UNMERGED_IMAGE,  # as where it does: nothing was removed
            f"{order.machine}: whether the image {image} still lies over this backup cannot be told: {why}; "
            "mend the image or its sstSourceFile, then delete",
        ) from None


def _refuse_if_held(catalogue: Catalogue, leaf: Leaf, host: Host) -> None:
    """As the leaf says now: it may have been held since the deletion was asked for."""
    hold = why_held(catalogue.leaf(leaf.dn) or leaf, datetime.fromtimestamp(host.wall_clock(), UTC))
    if hold:
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{leaf.machine}: the backup {leaf.timestamp} is {hold}; take that back first: "
            f"vmkeep release {leaf.machine} {leaf.timestamp}",
        )


def _refuse_while_restored(catalogue: Catalogue, leaf: Leaf) -> None:
    """What the plan lets go can wait: nobody knows yet which set a restore will end well with."""
    for other in catalogue.leaves(leaf.machine):
        if other.is_in_restore:
            raise Refused(
                ReturnValue.CANNOT_LOCK_MACHINE,
                f"{leaf.machine}: a restore is under way ({other.timestamp} is at {other.raw_mode}); old backups stay",
            )


def _refuse_if_restored_from(catalogue: Catalogue, leaf: Leaf) -> None:
    """The leaf itself is in no restore: it has one mode. But its set may be restored under another name."""
    for other in restored_under_other_names(catalogue, leaf.machine):
        if other.timestamp == leaf.timestamp:
            raise Refused(
                ReturnValue.CANNOT_LOCK_MACHINE,
                f"{leaf.machine}: the backup {leaf.timestamp} is being restored as {other.machine}; "
                "delete it afterwards",
            )


def restored_under_other_names(catalogue: Catalogue, machine: str) -> list[Leaf]:
    """Leaves of other machines that are being made from this one's sets; each is named as the set it is made from."""
    theirs = AllOf((LEAVES, Equals(Attribute.RESTORE_FROM, machine)))
    return [leaf for leaf in catalogue.leaves(matching=theirs) if leaf.is_in_restore]


def _directory(leaf: Leaf, plan: Plan, host: Host) -> PurePosixPath | None:
    if leaf.set_directory:
        return _as_sets_lie(leaf, PurePosixPath(leaf.set_directory))
    found = places_of(PurePosixPath(plan.backup_root), leaf.machine, leaf.timestamp, host.roots)
    if not found:  # it failed before retain: what it left lies there, by the same parts
        left = places_of(PurePosixPath(plan.retain_root), leaf.machine, leaf.timestamp, host.roots)
        found = [PurePosixPath(plan.backup_root, *place.parts[-4:]) for place in left]
    if len(found) > 1:
        raise Refused(
            ReturnValue.WRONG_STATE_INFORMATION,
            f"{leaf.machine}: the backup {leaf.timestamp} lies at several places ({', '.join(map(str, found))}); "
            "set vmkeepSetDirectory on the leaf",
        )
    return found[0] if found else None


def _as_sets_lie(leaf: Leaf, directory: PurePosixPath) -> PurePosixPath:
    """Whatever the leaf says, nothing is removed but a directory that a set of this very backup lies in."""
    parts = directory.parts
    is_ours = len(parts) > 5 and parts[-4] in MACHINE_TYPES and parts[-2:] == (leaf.machine, leaf.timestamp)
    if not is_ours or not directory.is_absolute() or ".." in parts:
        raise Refused(
            ReturnValue.PATH_NOT_ALLOWED,
            f"{leaf.machine}: vmkeepSetDirectory is {leaf.set_directory!r}, and only …/<machine type>/<storage pool>/"
            f"{leaf.machine}/{leaf.timestamp} is removed for this leaf; correct it, or remove the files by hand",
        )
    return directory


def _refuse_last(leaf: Leaf, complete: set[str], floor: int, host: Host) -> None:
    """Files are the truth about files: where the storage is not mounted, there is no good set beside this one."""
    if leaf.timestamp not in complete and not leaf.manifest_digest:
        return
    others = complete - {leaf.timestamp}
    mend = "make another first, or set vmkeepDeleteLast TRUE on the leaf to remove it all the same"
    if leaf.timestamp not in complete:
        mend = f"its own set is not to be seen on {host.node} either: is the storage mounted? Else {mend}"
    why = ""
    if not others:
        why = "is its only good backup"
    elif len(others) < floor:
        why = f"stays: without it there were {len(others)} good ones, and the plan keeps {floor} at the least"
    elif leaf.pruned and max(others) < leaf.timestamp:
        why = "is its newest good backup"
    if why:
        raise Refused(ReturnValue.WRONG_STATE_INFORMATION, f"{leaf.machine}: {leaf.timestamp} {why}; {mend}")


def _complete_sets(leaf: Leaf, directory: PurePosixPath | None, plan: Plan, host: Host) -> set[str]:
    """The machine's good sets: beside this one, and wherever else below the plan's root its disks once lay."""
    places = set(machine_places(PurePosixPath(plan.backup_root), leaf.machine, host.roots))
    places |= {directory.parent} if directory else set()
    named = ((place, name) for place in places for name in names_of(place, host.roots) if is_timestamp(name))
    return {name for place, name in named if _is_complete(place / name, host)}


def _is_complete(directory: PurePosixPath, host: Host) -> bool:
    try:
        with open_folder(directory, host.roots) as folder:
            return folder.exists(f"{MANIFEST_NAME}.{directory.name}")
    except (FileNotFoundError, HostFailure):
        return False
