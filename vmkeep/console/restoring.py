"""What a restore does next, from leaves as read; pure. Called by the commands `restore` and `abort`, which do it."""

from collections.abc import Sequence
from enum import Enum

from vmkeep.contract.codes import ReturnValue, meaning_of
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import ROWS, Kind, Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.pruning import is_being_deleted

LATEST = "latest"
_RESTORING = (Mode.RESTORE, Mode.RESTORING, Mode.RESTORED)
_MOST_SHOWN = 20


class Step(Enum):
    """What is to be done now."""

    BEGIN = "ask for the small files"
    DECIDE = "show what differs and decide"
    WAIT = "wait for agent or controller"
    FAILED = "say why it failed"
    RESTORED = "say that it is done"
    ENDED = "say that somebody else ended it"


def step_of(leaf: Leaf | None, before: Leaf | None) -> Step:
    """The next step. `before` is the leaf as last seen by this restore, None as long as it did nothing yet."""
    if leaf is None:
        # The controller removes the leaf of a machine that was made beside its original.
        return Step.RESTORED if before and before.wishes.original and _was_restoring(before) else Step.ENDED
    if leaf.mode is Mode.FINISHED:
        return _finished(leaf, before)
    if not leaf.is_in_restore:
        return Step.ENDED
    if leaf.is_failed:
        return _failed(leaf, before)
    return Step.DECIDE if leaf.mode is Mode.UNRETAINED_SMALL_FILES else Step.WAIT


def _finished(leaf: Leaf, before: Leaf | None) -> Step:
    if before is None:
        return Step.BEGIN if leaf.is_good_backup else Step.ENDED
    # Two quick moves may be seen as one; what the agent noted tells whether the machine was restored in between.
    noted = leaf.duration("restore") != before.duration("restore")
    return Step.RESTORED if leaf.is_good_backup and (_was_restoring(before) or noted) else Step.ENDED


def _was_restoring(before: Leaf) -> bool:
    return before.mode in _RESTORING and not before.is_failed


def _failed(leaf: Leaf, before: Leaf | None) -> Step:
    """A failure found is tried again where the protocol has a way; one that happens before our eyes is told."""
    if before is None and leaf.mode is Mode.UNRETAINING_SMALL_FILES:
        return Step.BEGIN
    if before is None and leaf.mode in (Mode.UNRETAINING_LARGE_FILES, Mode.UNRETAINED_LARGE_FILES):
        return Step.DECIDE
    return Step.FAILED


def is_touched(leaf: Leaf | None) -> bool:
    """Whether the machine may be being changed already."""
    return leaf is not None and leaf.mode in _RESTORING


def choose(machine: str, leaves: Sequence[Leaf], at: str | None) -> Leaf:
    """The leaf to restore from; one whose restore is under way before all others. Refused with what there is."""
    under_way = next((leaf for leaf in leaves if leaf.is_in_restore), None)
    if under_way:
        if at not in (None, LATEST, under_way.timestamp):
            raise _busy(under_way, f"a restore of {under_way.timestamp} is under way ({under_way.raw_mode})")
        return under_way
    busy = next((leaf for leaf in leaves if leaf.is_in_flight and not is_being_deleted(leaf)), None)
    if busy:
        raise _busy(busy, f"{busy.timestamp} is at work ({busy.raw_mode})")
    return _good(machine, leaves, at or LATEST)


def choose_good(machine: str, leaves: Sequence[Leaf], at: str | None) -> Leaf:
    """A good backup whose set may be read, whatever else happens to the machine. Refused with what there is."""
    return _good(machine, leaves, at or LATEST)


def ways_on(machine: str) -> str:
    """How to leave or go on with a restore that stands."""
    return f"go on with `vmkeep restore {machine}`, or back out with `vmkeep abort {machine}`"


def failure(leaf: Leaf) -> str:
    """A failed leaf in one sentence."""
    said = f": {leaf.message}" if leaf.message else ""
    return f"{leaf.machine}: {leaf.timestamp} failed at {leaf.raw_mode}: {leaf.return_value}, " + (
        f"{meaning_of(leaf.return_value)}{said}"
    )


def _good(machine: str, leaves: Sequence[Leaf], at: str) -> Leaf:
    # A leaf that brought another machine's set here is no backup of this one.
    good = {leaf.timestamp: leaf for leaf in leaves if leaf.is_good_backup and not leaf.wishes.original}
    if not good:
        raise Refused(ReturnValue.MISSING_FILES, f"{machine}: there is no good backup to restore; {_others(leaves)}")
    wanted = max(good) if at == LATEST else at
    if wanted in good:
        return good[wanted]
    odd = next((leaf for leaf in leaves if leaf.timestamp == wanted), None)
    why = f"is no good backup ({odd.raw_mode}, {odd.return_value})" if odd else "is not there"
    newest = sorted(good, reverse=True)
    more = f" and {len(newest) - _MOST_SHOWN} older ones" if len(newest) > _MOST_SHOWN else ""
    raise Refused(
        ReturnValue.MISSING_FILES,
        f"{machine}: the backup {wanted} {why}; good ones: {', '.join(newest[:_MOST_SHOWN])}{more}",
    )


def _others(leaves: Sequence[Leaf]) -> str:
    if not leaves:
        return "it has no leaf at all: if its sets are there, `vmkeep rebuild-catalogue DIRECTORY` brings them back"
    newest = max(leaves, key=lambda leaf: leaf.timestamp)
    return f"the newest leaf {newest.timestamp} stands at {newest.raw_mode} with {newest.return_value}"


def _busy(leaf: Leaf, what: str) -> Refused:
    way = f"; {ways_on(leaf.machine)}" if leaf.is_in_restore else "; wait for its end (`vmkeep status`)"
    return Refused(ReturnValue.CANNOT_LOCK_MACHINE, f"{leaf.machine}: {what}{way}")


def why_not_abort(leaf: Leaf) -> str | None:
    """Why backing out of this restore is not possible now; None where it is."""
    if leaf.entry_before and leaf.wishes.original:
        return "the controller is bringing the new entry in line or putting it back; wait until it has"
    if leaf.is_failed or leaf.mode in (Mode.UNRETAINED_SMALL_FILES, Mode.UNRETAINED_LARGE_FILES):
        return None
    if leaf.mode is not None and ROWS[leaf.mode].kind is Kind.IMPERATIVE and leaf.mode is not Mode.RESTORE:
        return None
    if leaf.mode is Mode.RESTORE:
        return "its entry is in line with the set and the machine's restore is asked for; wait for the agent's answer"
    if leaf.mode is Mode.RESTORED:
        return "the machine is restored; the controller ends the leaf"
    return "the agent is at work; wait until it waits for a decision, or failed"


def keeps_old(leaf: Leaf) -> bool:
    """Whether retain may still hold what an earlier restore of this leaf replaced: nothing was brought there since."""
    is_outside = leaf.mode in (Mode.FINISHED, Mode.UNRETAIN_SMALL_FILES, Mode.UNRETAINING_SMALL_FILES)
    return is_outside and leaf.wishes.keep_old and leaf.duration(Mode.RESTORE) is not None


def refuse_while_old_is_kept(leaf: Leaf) -> None:
    """Refused where a restore would meet what an earlier one kept, and leaving it might remove that."""
    if not keeps_old(leaf):
        return
    said = leaf.message if "/before" in leaf.message else f"…/{leaf.machine}/{leaf.timestamp}/before below retain"
    first = f"leave it with `vmkeep abort {leaf.machine}`, and " if leaf.is_in_restore else ""
    raise Refused(
        ReturnValue.RETAIN_NOT_EMPTY,
        f"{leaf.machine}: {Attribute.KEEP_OLD} keeps what an earlier restore of {leaf.timestamp} replaced, on its node "
        f"({said}); nothing was asked for. When it is no longer needed, {first}let it go with "
        "ldif/edits/drop-old.ldif; then ask again",
    )
