"""The commands `hold` and `release`: somebody's word that a backup stays, written beside whatever the leaf is doing."""

from datetime import datetime

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.pruning import hold_of
from vmkeep.contract.retention import Hold, hold_text
from vmkeep.contract.timestamps import is_timestamp, to_timestamp
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import Claim

_MOST = 500


def hold_for(reason: str, until: datetime | None, now: datetime) -> Hold:
    """The hold that is asked for; ValueError with what is wrong with it. Pure."""
    text = " ".join(reason.split())
    if not text or len(text) > _MOST or not text.isprintable():
        raise ValueError(f"say why, in at most {_MOST} characters")
    if is_timestamp(text.partition(" ")[0]):
        raise ValueError("the reason begins with a time, and would be read as the end; use --until, or other words")
    if until is not None and until <= now:
        raise ValueError(f"{to_timestamp(until)} has passed")
    return Hold(text, until)


def hold(catalogue: Catalogue, leaf: Leaf, wanted: Hold) -> str:
    """Have a backup stay; what was done. Refused where it is being deleted already."""
    if leaf.mode in (Mode.DELETING, Mode.DELETED) and not leaf.is_failed:
        raise _too_late(leaf)
    before = hold_of(leaf)
    _write(catalogue, leaf, hold_text(wanted))
    until = f"until {to_timestamp(wanted.until)}" if wanted.until else "until it is released"
    instead = f", and no more for: {before.reason or 'no reason given'}" if before else ""
    asked = "; its deletion was asked for, and will be refused" if leaf.mode is Mode.DELETE else ""
    return f"{leaf.machine}: {leaf.timestamp} is held {until}: {wanted.reason}{instead}{asked}"


def release(catalogue: Catalogue, leaf: Leaf) -> str:
    """Take a hold back; what was done. Refused where there is none."""
    before = hold_of(leaf)
    if before is None:
        raise Refused(
            ReturnValue.WRONG_STATE_INFORMATION, f"{leaf.machine}: {leaf.timestamp} is not held; nothing was changed"
        )
    _write(catalogue, leaf, "")
    return (
        f"{leaf.machine}: {leaf.timestamp} is held no more ({before.reason or 'no reason given'}); "
        "it goes when the plan keeps it no longer"
    )


def _write(catalogue: Catalogue, leaf: Leaf, text: str) -> None:
    """Only while the leaf is where it was: an agent that has begun to delete it would not see the hold."""
    if catalogue.note(leaf, {Attribute.HOLD: (text,) if text else ()}) is Claim.LOST:
        raise Refused(
            ReturnValue.CANNOT_LOCK_MACHINE,
            f"{leaf.machine}: {leaf.timestamp} was moved in this moment; nothing was changed; say it again",
        )


def _too_late(leaf: Leaf) -> Refused:
    return Refused(
        ReturnValue.CANNOT_LOCK_MACHINE, f"{leaf.machine}: {leaf.timestamp} is being deleted; it is too late to hold it"
    )
