"""Leaves a restore where nothing is at work: the leaf is the good backup it was. Called by `restore` and `abort`.

A leaf that brought another machine's set here (`restore --as`) goes instead, with the entry that was made for it.
"""

from datetime import UTC, datetime

from vmkeep.console.another_name import take_back
from vmkeep.console.restoring import failure, keeps_old, why_not_abort
from vmkeep.contract.codes import NOTHING_REMOVED, ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.port import Claim

_GOES = (
    Attribute.CONFLICTS,
    Attribute.ENTRY,
    Attribute.RESTORE_DISK,
    Attribute.RESTORE_WITHOUT_STATE,
    Attribute.PRUNED,
    Attribute.RESTORE_ISOLATED,
    Attribute.RESTORE_KEEP_MAC,
)
# Failures that say something of the set itself. 37 of the large files may also mean a text that is gone from retain.
_LOST = {
    (Mode.UNRETAINING_SMALL_FILES, int(ReturnValue.MISSING_FILES)): "is missing, or files of it are",
    (Mode.UNRETAINING_SMALL_FILES, int(ReturnValue.CORRUPT_IMAGE)): "is damaged",
    (Mode.UNRETAINING_LARGE_FILES, int(ReturnValue.CORRUPT_IMAGE)): "is damaged",
}


def abort(catalogue: Catalogue, machine: str) -> str:
    """Back out of the machine's restore, or of a deletion that was refused; says what was done. Refused where not."""
    leaves = sorted(catalogue.leaves(machine), key=lambda leaf: leaf.timestamp)
    refused = next((leaf for leaf in leaves if leaf.mode is Mode.DELETING and leaf.return_value), None)
    leaf = next((leaf for leaf in leaves if leaf.is_in_restore), refused)
    if leaf is None:
        raise Refused(ReturnValue.WRONG_STATE_INFORMATION, f"{machine}: no restore is under way; nothing was changed")
    why = _why_not(leaf)
    if why:
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{machine}: {leaf.timestamp} stands at {leaf.raw_mode}, which cannot be left now: {why}",
        )
    was = failure(leaf) if leaf.is_failed else f"{machine}: {leaf.timestamp} stood at {leaf.raw_mode}"
    return f"{was}\n{back_out(catalogue, leaf)}"


def back_out(catalogue: Catalogue, leaf: Leaf) -> str:
    """Make the leaf, as read, what it was before; says what was done. Refused when somebody moved it meanwhile."""
    return_value, message = (leaf.return_value, None) if leaf.never_was_good else (0, "")
    report = Report(to_timestamp(datetime.now(UTC)), return_value, message, dict.fromkeys(_gone(leaf), ()))
    if catalogue.claim(leaf, Mode.FINISHED, report) is Claim.LOST:
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{leaf.machine}: somebody else moved {leaf.timestamp} meanwhile; look again (`vmkeep status`)",
        )
    if leaf.wishes.original:
        return take_back(catalogue, leaf)
    if return_value:
        return f"{leaf.machine}: backed out; {leaf.timestamp} was no good backup, and ends with {return_value}"
    if leaf.mode is Mode.DELETING:
        return f"{leaf.machine}: {leaf.timestamp} is the good backup it was"
    entry = "; the controller puts the machine's entry back" if leaf.entry_before else ""
    return f"{leaf.machine}: backed out; {leaf.timestamp} {_now(leaf)}, and the agent clears retain{entry}"


def _gone(leaf: Leaf) -> tuple[Attribute, ...]:
    # What an earlier restore kept is for the admin to let go; the agent removes it with this wish.
    return _GOES if keeps_old(leaf) else (*_GOES, Attribute.KEEP_OLD)


def _now(leaf: Leaf) -> str:
    """What the leaf is worth, by what the agent found of its set."""
    lost = _LOST.get((leaf.mode, leaf.return_value)) if leaf.mode else None
    return f"is finished again, but its set {lost}" if lost else "is the good backup it was"


def _why_not(leaf: Leaf) -> str | None:
    if leaf.mode is not Mode.DELETING:
        return why_not_abort(leaf)
    if leaf.return_value in NOTHING_REMOVED:
        return None
    return f"part of its set may be gone; go on with `vmkeep delete {leaf.machine} {leaf.timestamp}`"
