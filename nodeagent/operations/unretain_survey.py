"""Looks before a set is brought back: what differs from the machine as it is, and whether there is room.

Reads the directory, libvirt and the filesystem; writes nothing. Called by the surveyor.
"""

import secrets
import uuid
from collections.abc import Collection, Sequence

from nodeagent.host.description import describe
from nodeagent.host.folders import names_in, open_folder
from nodeagent.host.hypervisor import View
from nodeagent.operations.finding import FoundSet
from nodeagent.operations.restore_survey import refuse_obstacles, refuse_unknown_images
from nodeagent.operations.room import require_free, require_same_filesystem
from nodeagent.operations.saved_machine import SavedMachine
from nodeagent.order import Order, Restoring, SavedFile
from nodeagent.restoring import another_name, conflicts
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.manifest import Role
from vmkeep.contract.pruning import is_being_deleted
from vmkeep.directory.alignment import read_before, read_saved
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.ldif_text import to_ldif


def survey_small_files(catalogue: Catalogue, saved: SavedMachine, blank: Order) -> Order:
    """What to bring back for a person to look at. `blank` is an order with what every order has."""
    leaf, found, host, original = saved.leaf, saved.found, saved.host, saved.leaf.wishes.original
    _refuse_if_busy(catalogue, leaf)
    xml, ldif = found.text("xml"), found.text("ldif")
    if original:
        xml, ldif = _under_another_name(catalogue, leaf, xml, ldif)
    order = blank.model_copy(update={"place": found.place})
    _refuse_used_retain(order, host)
    differing = () if original else _conflicts(catalogue, host, leaf.machine, (xml, ldif))
    restoring = Restoring(
        set_directory=str(found.directory),
        xml=xml,
        ldif=ldif,
        conflicts=conflicts.as_json(differing),
        report=conflicts.as_text(leaf.machine, differing, original),
    )
    paths = order.paths
    texts = f"{paths.kept_name(paths.xml)} and {paths.kept_name(paths.ldif)} in {paths.retain}"
    told = f"made anew from the set of {original}" if original else conflicts.sentence(differing)
    parts = (told, saved.first_remark, f"to change what comes back, edit {texts}")
    warning = "; ".join(part for part in parts if part)
    return order.model_copy(update={"restoring": restoring, "warning": warning, "uuid": describe(xml).uuid})


def survey_large_files(saved: SavedMachine, blank: Order, images: Collection[str]) -> Order:
    """What to copy, once the edited texts are seen to be sound, the memory readable, and there is room.

    `images` are the paths that the machine's entry names by now.
    """
    leaf, found, edited = saved.leaf, saved.found, saved.edited
    if saved.is_brought_back_with_memory:
        saved.refuse_forbidden_memory(found.directory, found.one("state").name)
    files = _files(leaf, found, [disk.target for disk in saved.disks])
    alone = bool(leaf.wishes.disks)
    ldif = "" if alone else edited.ldif
    restoring = Restoring(set_directory=str(found.directory), files=files, xml=edited.xml, ldif=ldif, alone=alone)
    order = blank.model_copy(
        update={
            "place": found.place,
            "restoring": restoring,
            "disks": saved.disks,
            "uuid": edited.description.uuid,
            "bytes_total": sum(file.size for file in files),
            "warning": saved.remark,
        }
    )
    # What would be refused in the end is refused before hours of copying.
    view = saved.host.hypervisor.look(leaf.machine)
    refuse_obstacles(order, saved.host, view)
    refuse_unknown_images(order, saved.host, {*images, *_images(view)})
    require_same_filesystem(order, saved.host.roots)
    require_free(order, saved.host.roots, order.retain_root, _needed(order, found, view))
    return order


def _images(view: View | None) -> list[str]:
    return [disk.source for disk in view.description.disks if disk.source] if view else []


def _needed(order: Order, found: FoundSet, view: View | None) -> int:
    """Bytes of the files beyond those of an earlier attempt, which go first, and of the memory that is kept aside."""
    with found.opened() as source, open_folder(order.paths.retain, found.roots) as retain:
        files = sum(source.allocated(file.name) - retain.allocated(file.kept) for file in order.set.files)
    return files + (view.description.memory if view and view.is_active else 0)


def _files(leaf: Leaf, found: FoundSet, targets: Sequence[str]) -> tuple[SavedFile, ...]:
    roles: tuple[Role, ...] = ("disk",) if leaf.wishes.disks else ("nvram", "tpm", "state", "disk")
    wanted = [file for file in found.files(*roles) if file.role != "disk" or file.target in targets]
    return tuple(SavedFile(kept=file.name, **file.model_dump()) for file in wanted)


def _conflicts(
    catalogue: Catalogue, host: Host, machine: str, texts: tuple[str, str]
) -> tuple[conflicts.Conflict, ...]:
    xml, ldif = texts
    saved, live = read_before(ldif, machine, catalogue.tree), catalogue.subtree(machine)
    return (
        *conflicts.compare_descriptions(xml, _definition(host, machine)),
        *conflicts.compare_entries(saved, live, machine, catalogue.tree),
    )


def _definition(host: Host, machine: str) -> str | None:
    """What the machine would be started from; of one that is not kept, what it runs with."""
    kept = host.hypervisor.definition(machine)
    if kept:
        return kept
    view = host.hypervisor.look(machine)
    return view.xml if view else None


def _under_another_name(catalogue: Catalogue, leaf: Leaf, xml: str, ldif: str) -> tuple[str, str]:
    """Both texts for the new machine: own UUID, addresses and images."""
    original, description = leaf.wishes.original, describe(xml)
    disks = [(disk.target, disk.source) for disk in description.disks if disk.is_backed_up and disk.source]
    identity = another_name.NewIdentity(
        name=leaf.machine,
        uuid=str(uuid.uuid4()),
        macs=None if leaf.wishes.keep_mac else another_name.new_macs(xml, secrets.token_bytes),
        paths=another_name.new_paths(disks, original, leaf.machine),
        nvram=another_name.new_nvram(description.nvram, original, leaf.machine) if description.nvram else None,
        isolated=leaf.wishes.isolated,
    )
    entries = read_saved(ldif, original, catalogue.tree)
    renamed = another_name.renamed_entries(entries, original, identity, catalogue.tree)
    return another_name.renamed_description(xml, identity), to_ldif(renamed)


def _refuse_if_busy(catalogue: Catalogue, leaf: Leaf) -> None:
    others = [other for other in catalogue.leaves(leaf.machine) if other.dn != leaf.dn]
    busy = [other for other in others if other.is_in_flight and not is_being_deleted(other)]
    if busy:
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{leaf.machine}: the leaf {busy[0].timestamp} is in mode {busy[0].raw_mode}; end that first, "
            "then ask for the restore again",
        )


def _refuse_used_retain(order: Order, host: Host) -> None:
    if left := names_in(order.paths.retain, host.roots):
        raise Refused(
            ReturnValue.RETAIN_NOT_EMPTY,
            f"{order.machine}: {order.paths.retain} is not empty ({', '.join(left[:5])}): what an earlier restore "
            "kept (vmkeepKeepOld), or somebody's own; move it away first",
        )
