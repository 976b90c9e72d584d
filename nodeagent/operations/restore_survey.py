"""Looks before a machine is put back: what is to become of it, and whether anything stands in the way.

Reads the directory, libvirt and the filesystem; writes nothing. Called by the surveyor.
"""

from collections.abc import Collection
from pathlib import PurePosixPath

from nodeagent.host.description import Description
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import names_in, open_folder
from nodeagent.host.hypervisor import View
from nodeagent.operations.aside import before_directory
from nodeagent.operations.finding import FoundSet
from nodeagent.operations.in_use import refuse_if_open_elsewhere
from nodeagent.operations.overlays import image_below
from nodeagent.operations.room import require_free, require_same_filesystem
from nodeagent.operations.saved_machine import SavedMachine
from nodeagent.order import Firmware, Order, OrderDisk, Restoring
from nodeagent.restoring.allowed import peculiarities
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power


def survey_restore(saved: SavedMachine, blank: Order, libvirt_state: str) -> Order:
    """What is to become of the machine. `blank` is an order with what every order has."""
    leaf, host, description = saved.leaf, saved.host, saved.edited.description
    order = blank.model_copy(
        update={"place": saved.found.place, "restoring": _becoming(saved), "uuid": description.uuid}
    )
    if saved.is_brought_back_with_memory:  # since it was copied, somebody may have put another there
        saved.refuse_forbidden_memory(order.paths.retain, order.set.state_file)
    order = order.model_copy(update={"disks": tuple(_waiting(order, host, disk) for disk in saved.disks)})
    view = host.hypervisor.look(leaf.machine)
    refuse_obstacles(order, host, view)
    require_same_filesystem(order, host.roots)
    if view is not None and view.is_active:
        require_free(order, host.roots, order.retain_root, view.description.memory)
    firmware = () if order.set.alone else _firmware(saved.found, description, PurePosixPath(libvirt_state))
    update = {"power": view.power if view else Power.OFF, "firmware": firmware, "warning": _remark(saved, order)}
    if view is not None and view.is_active:
        update["peculiar"] = peculiarities(host.hypervisor.description_to_keep(leaf.machine))
    return order.model_copy(update=update)


def _becoming(saved: SavedMachine) -> Restoring:
    with_memory = saved.is_brought_back_with_memory
    starts = saved.starts and not with_memory
    return Restoring(
        set_directory=str(saved.found.directory),
        xml=saved.edited.xml,
        old_xml=saved.host.hypervisor.definition(saved.leaf.machine),
        state_file=saved.found.one("state").name if with_memory else "",
        starts=starts,
        becomes=saved.found.manifest.power if with_memory else Power.RUNNING if starts else Power.OFF,
        alone=bool(saved.leaf.wishes.disks),
    )


def _remark(saved: SavedMachine, order: Order) -> str:
    kept = f"what was replaced is kept in {before_directory(order)}" if saved.leaf.wishes.keep_old else ""
    return "; ".join(remark for remark in (saved.remark, kept) if remark)


def _waiting(order: Order, host: Host, disk: OrderDisk) -> OrderDisk:
    """A disk whose image waits in retain, whole."""
    path = order.paths.retain / disk.kept
    try:
        header = host.header(path)
        with open_folder(path.parent, host.roots) as retain:
            found = retain.status(path.name)
    except FileNotFoundError:
        raise Refused(
            ReturnValue.MISSING_FILES, f"{order.machine}: {path} is missing; ask for unretainLargeFiles again"
        ) from None
    except HostFailure as why:
        raise Refused(ReturnValue.CORRUPT_IMAGE, f"{order.machine}: {why}") from None
    if header.backing_file is not None:
        raise Refused(ReturnValue.CORRUPT_IMAGE, f"{order.machine}: {path} lies over {header.backing_file}")
    return disk.model_copy(update={"size": header.virtual_size, "inode": found.st_ino if found else 0})


def _firmware(found: FoundSet, description: Description, libvirt_state: PurePosixPath) -> tuple[Firmware, ...]:
    tpm_directory = libvirt_state / "swtpm" / description.uuid
    wanted = [(file, description.nvram) for file in found.files("nvram") if description.nvram]
    if description.has_tpm:
        wanted += [(file, str(tpm_directory / _version_and_name(file.original_path))) for file in found.files("tpm")]
    return tuple(Firmware(role=file.role, path=str(path), kept=file.name) for file, path in wanted)


def _version_and_name(original: str | None) -> PurePosixPath:
    """The last two parts of a TPM's path: above them is the machine's UUID, which may be another now."""
    return PurePosixPath(*PurePosixPath(original or "tpm2/tpm2-00.permall").parts[-2:])


def refuse_obstacles(order: Order, host: Host, view: View | None) -> None:
    """Refused where the machine, or another, stands in the way of being replaced; asked before the copy, and again."""
    if view is not None and view.moved_away:
        raise _wrong_state(order, f"it has moved away from {host.node}; set sstNode to where it runs now")
    if order.set.alone and view is not None and view.is_active:
        raise _wrong_state(order, "single disks are restored into a machine that is off; switch it off first")
    if host.hypervisor.has_managed_save(order.machine):
        raise _wrong_state(
            order,
            "libvirt holds a managed save of it, which would meet other disks; start the machine, "
            f"or drop its memory with: virsh managedsave-remove {order.machine}",
        )
    _refuse_overlays(order, view)
    _refuse_unread(order, view)
    _refuse_kept(order, host)
    _refuse_other_uuid(order, host, view)
    _refuse_foreign_images(order, host)
    # A CD-ROM stays where it is, and others may read it.
    own = [disk.source for disk in view.description.disks if disk.is_backed_up and disk.source] if view else []
    refuse_if_open_elsewhere(order.machine, host, view, {*own, *(disk.path for disk in order.disks)})


def _refuse_overlays(order: Order, view: View | None) -> None:
    """An overlay would lie over another image than its own, and would not be kept with the one it lay over."""
    for disk in view.description.disks if view else ():
        if disk.source and image_below(disk.source) != disk.source:
            raise Refused(
                ReturnValue.UNMERGED_IMAGE,
                f"{order.machine}: {disk.target} writes to {disk.source}, which an earlier backup has not written "
                "back; back the machine up first, which does that before all else, then ask again; nothing was touched",
            )


def _refuse_unread(order: Order, view: View | None) -> None:
    """A single disk changes no definition: put where that does not look, it would be restored for nobody."""
    if view is None or not order.set.alone:
        return
    named = {disk.target: disk.source for disk in view.description.disks}
    for disk in order.disks:
        if named.get(disk.target) != disk.path:
            raise Refused(
                ReturnValue.INCONSISTENT_DISKS,
                f"{order.machine}: {disk.target} would come back at {disk.path}, and the machine as it is defined has "
                f"{named.get(disk.target) or 'no image'} there; give the disk that path in the description and the "
                "entry in retain, or restore the whole machine; nothing was touched",
            )


def refuse_unknown_images(order: Order, host: Host, known: Collection[str]) -> None:
    """Refused where a file lies in the way that is not `known` to be the machine's: what is replaced goes in the end.

    It may be the image of another node's machine, or one that somebody keeps. Asked while the entry is the old one.
    """
    for disk in order.disks:
        path = PurePosixPath(disk.path)
        if disk.path not in known and path.name in names_in(path.parent, host.roots):
            raise Refused(
                ReturnValue.UNEXPECTED_IMAGE,
                f"{order.machine}: there is a file at {path}, where {disk.target} is to go, and neither libvirt nor "
                "the directory calls it this machine's; move it away, or give the disk another path in the description "
                "and the entry in retain; nothing was touched",
            )


def _refuse_kept(order: Order, host: Host) -> None:
    """What an earlier attempt could not put back would be written over."""
    directory = before_directory(order)
    if names := names_in(directory, host.roots):
        raise Refused(
            ReturnValue.RETAIN_NOT_EMPTY,
            f"{order.machine}: {directory} holds what an earlier restore replaced ({', '.join(names[:5])}) and may be "
            "all there is of it; put it back, or move it away, then ask again",
        )


def _refuse_other_uuid(order: Order, host: Host, view: View | None) -> None:
    owner = host.hypervisor.name_of_uuid(order.uuid)
    if owner not in ("", order.machine):
        raise _wrong_state(order, f"its UUID {order.uuid} belongs to {owner} here; change one of the two")
    if view is not None and view.description.uuid != order.uuid:
        raise _wrong_state(
            order,
            f"libvirt knows it with the UUID {view.description.uuid}, and it was backed up with {order.uuid}: "
            "another machine of that name; rename or undefine that one first",
        )


def _refuse_foreign_images(order: Order, host: Host) -> None:
    others = host.hypervisor.disks_of_others(order.machine)
    for disk in order.disks:
        if disk.path in others:
            raise Refused(
                ReturnValue.UNEXPECTED_IMAGE,
                f"{order.machine}: the image {disk.path} of {disk.target} belongs to {others[disk.path]}; "
                "give the disk another path in the description and the entry in retain",
            )


def _wrong_state(order: Order, why: str) -> Refused:
    return Refused(ReturnValue.WRONG_STATE_INFORMATION, f"{order.machine}: {why}; nothing was touched")
