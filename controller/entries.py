"""Brings a machine's entry in line with a restore, and puts it back when the restore did not happen.

Called by the cycle. The entry as it is is kept on the leaf before the first change. Killed anywhere, the next turn does
it again to the same end: what is kept is never written twice, and a change that is made already is none.
"""

from collections.abc import Sequence
from datetime import datetime

from controller.actions import ENTRIES, RESTORES_OWN, Action, BringInLine, PutBack
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import NOT_PUT_BACK, NOW, Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.contract.timestamps import is_timestamp, to_timestamp
from vmkeep.directory.alignment import align, changes, read_before, read_saved
from vmkeep.directory.catalogue import Catalogue, disk_of
from vmkeep.directory.equality import normal_dn
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.port import Claim, Entry

_HOW_TO_GO_ON = (
    "the machine's entry is as it was before; mend the LDIF in retain (or the directory) and set unretainLargeFiles "
    "again, or back out with finished"
)
_NOT_PUT_BACK = f"its entry {NOT_PUT_BACK} from vmkeepEntryBefore, which holds it as it was; do that by hand"


def carry_out(catalogue: Catalogue, step: BringInLine | PutBack, now: datetime) -> Action | None:
    """Change the entries; the claim that is then due, or None where somebody else moved the leaf.

    Raises Refused when even putting back is refused.
    """
    if isinstance(step, BringInLine):
        return _bring_in_line(catalogue, step.leaf, now)
    return _put_back(catalogue, step.leaf, now)


def as_decided(catalogue: Catalogue, leaf: Leaf) -> Leaf | None:
    """The leaf read afresh, whole; None where it is no longer where it was when that was decided."""
    fresh = catalogue.leaf(leaf.dn)
    is_same = fresh is not None and (fresh.raw_mode, fresh.state) == (leaf.raw_mode, leaf.state)
    return fresh if is_same else None


def _bring_in_line(catalogue: Catalogue, decided: Leaf, now: datetime) -> Action | None:
    # Entries first, leaf second: where the leaf holds no copy then, nobody had begun to change the entries when read.
    live = _live(catalogue, decided.machine)
    leaf = as_decided(catalogue, decided)
    if leaf is None:
        return None
    try:
        if not _aligned(catalogue, leaf, live):
            return None
    except Refused as why:
        return _given_up(catalogue, leaf, why, now)
    said = f"{leaf.raw_mode} → {Mode.RESTORE}, the machine's entry is in line with the saved one"
    complained = leaf.message.endswith(_HOW_TO_GO_ON)
    return Action(leaf, Mode.RESTORE, NOW, message="" if complained else None, said=said)


def _aligned(catalogue: Catalogue, leaf: Leaf, live: list[Entry]) -> bool:
    """False where the leaf moved meanwhile."""
    saved = read_saved(leaf.entry, leaf.machine, catalogue.tree)
    _refuse_images_of_others(catalogue, leaf.machine, saved)
    if not (_is_still_ours(catalogue, leaf) if leaf.entry_before else _kept(catalogue, leaf, live)):
        return False
    align(catalogue.store, changes(saved, live, leaf.machine, catalogue.tree))
    return True


def _refuse_images_of_others(catalogue: Catalogue, machine: str, saved: Sequence[Entry]) -> None:
    """An agent knows the machines of its own node alone; on shared storage others may have their images there."""
    disks = [disk_of(entry) for entry in saved if entry.has_class(ObjectClass.DISK)]
    targets = {disk.source: disk.target for disk in disks if disk.source and disk.is_backed_up}
    for owner, path, dn in catalogue.naming_images(targets) if targets else ():
        if owner.casefold() != machine.casefold():
            raise Refused(
                ReturnValue.UNEXPECTED_IMAGE,
                f"{machine}: the image {path} of {targets[path]} belongs to {owner} ({dn}); give the disk another path "
                "in the description and the LDIF in retain",
            )


def _kept(catalogue: Catalogue, leaf: Leaf, live: list[Entry]) -> bool:
    text = to_ldif(live)
    read_before(text, leaf.machine, catalogue.tree)  # what could not be read back is no way back
    return catalogue.note(leaf, {Attribute.ENTRY_BEFORE: (text,)}) is Claim.WON


def _is_still_ours(catalogue: Catalogue, leaf: Leaf) -> bool:
    """Whether nobody moved the leaf, and no later controller wrote on it: entries of machines carry no epoch."""
    return catalogue.note(leaf, {}) is Claim.WON


def _given_up(catalogue: Catalogue, leaf: Leaf, why: Refused, now: datetime) -> Action | None:
    fresh = as_decided(catalogue, leaf)
    if fresh is None:
        return None
    removed: tuple[Attribute, ...] = (Attribute.ENTRY_BEFORE,)
    named = why.sentence.removeprefix(f"{leaf.machine}: ")  # the directory's own refusals name entries alone
    message = f"{leaf.machine}: {named}; {_HOW_TO_GO_ON}"
    try:
        if not _restore_before(catalogue, fresh):
            return None
    except Refused as second:
        removed = ()
        message = f"{leaf.machine}: {named}; and {_NOT_PUT_BACK}: {second.sentence}"
    is_taken = why.code is ReturnValue.UNEXPECTED_IMAGE
    code = why.code if is_taken else ReturnValue.CANNOT_SAVE_BACKEND_ENTRY
    return Action(fresh, Mode.UNRETAINED_LARGE_FILES, to_timestamp(now), code, message, removed=removed)


def _put_back(catalogue: Catalogue, decided: Leaf, now: datetime) -> Action | None:
    leaf = as_decided(catalogue, decided)
    if leaf is None or leaf.mode is None:
        return None
    if not _restore_before(catalogue, leaf):
        return None
    is_end = leaf.mode is Mode.FINISHED
    state = to_timestamp(now) if is_end and not is_timestamp(leaf.state) else leaf.state
    said = "the machine's entry is as it was before the restore"
    removed = RESTORES_OWN if is_end else ENTRIES
    message = "" if leaf.is_good_backup else None  # it told of the restore
    return Action(leaf, leaf.mode, state, leaf.return_value, message, removed=removed, said=said)


def _restore_before(catalogue: Catalogue, leaf: Leaf) -> bool:
    """False where the leaf moved meanwhile."""
    if not leaf.entry_before:
        return True
    before = read_before(leaf.entry_before, leaf.machine, catalogue.tree)
    live = _live(catalogue, leaf.machine)
    if not _is_still_ours(catalogue, leaf):
        return False
    align(catalogue.store, changes(before, live, leaf.machine, catalogue.tree, exactly=True))
    return True


def _live(catalogue: Catalogue, machine: str) -> list[Entry]:
    """The machine's entries, without its plan and what lies below that."""
    plan = normal_dn(catalogue.tree.machine_plan(machine))
    return [entry for entry in catalogue.subtree(machine) if normal_dn(entry.dn)[-len(plan) :] != plan]
