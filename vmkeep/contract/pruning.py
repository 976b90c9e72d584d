"""Which leaves of one machine are to be deleted now, and why the others stay: what its plan keeps, put to its leaves.

Pure. The controller asks for the deletions, `vmkeep prune` shows them and asks as well, and the agent looks again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from vmkeep.contract.codes import NOTHING_REMOVED, meaning_of
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import ROWS, Circle, Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.retention import Backup, Hold, Policy, Verdict, judge, read_hold
from vmkeep.contract.timestamps import from_timestamp, is_timestamp, to_timestamp

# What of a leaf is read for this, beside its mode.
JUDGED_BY = (*(Attribute.MANIFEST_DIGEST, Attribute.HOLD, Attribute.PRUNED, Attribute.RESTORE_FROM, Attribute.MESSAGE),)
# A failure is there to be read: for so long, and until a newer backup is good.
FAILED_STAY = timedelta(days=7)
# A deletion that was refused, or failed, is asked for again after so long.
ASKED_AGAIN = timedelta(days=1)
NOT_DELETED = "not deleted"  # how the message begins of a good backup whose deletion was refused
_WORTH_FINISHING = (Mode.MERGING, Mode.RETAINING)


@dataclass(frozen=True)
class Judged:
    """One leaf, whether it is to be deleted, and every reason for that."""

    leaf: Leaf
    goes: bool
    reasons: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reasons as one line."""
        return "; ".join(self.reasons)


def judge_leaves(
    leaves: Sequence[Leaf], restored_elsewhere: Collection[str], policy: Policy, now: datetime, zone: ZoneInfo
) -> tuple[Judged, ...]:
    """All leaves of one machine, newest first.

    `restored_elsewhere` are the timestamps from which other machines are being made.
    """
    own = [leaf for leaf in leaves if not leaf.wishes.original]
    verdicts = judge([_backup(leaf, restored_elsewhere) for leaf in own], policy, now, zone)
    by_time = {verdict.backup.planned: verdict for verdict in verdicts}
    machine = _Machine(own, now, tuple(_what_keeps_all(leaves, own)))
    found = [machine.judged(leaf, by_time[leaf.planned]) for leaf in own]
    others = (leaf for leaf in leaves if leaf.wishes.original)
    found += [Judged(leaf, False, (f"it restores a set of {leaf.wishes.original}",)) for leaf in others]
    return tuple(sorted(found, key=lambda one: one.leaf.timestamp, reverse=True))


def to_ask(judged: Sequence[Judged]) -> list[Judged]:
    """Those whose deletion is to be asked for, oldest first."""
    return sorted((one for one in judged if one.goes), key=lambda one: one.leaf.timestamp)


def hold_of(leaf: Leaf) -> Hold | None:
    """Somebody's word that it stays, whether or not it has run out."""
    return read_hold(leaf.hold) if leaf.hold else None


def why_held(leaf: Leaf, now: datetime) -> str:
    """What is said of a hold that is on; empty where none is."""
    hold = hold_of(leaf)
    if hold is None or not hold.is_on(now):
        return ""
    until = f" until {to_timestamp(hold.until)}" if hold.until else ""
    return f"held{until}: {hold.reason or 'no reason given'}"


def was_refused(leaf: Leaf) -> bool:
    """Whether the plan let a good backup go, and nothing of it was removed."""
    is_let_go = leaf.mode is Mode.DELETING and bool(leaf.pruned and leaf.manifest_digest)
    return is_let_go and leaf.return_value in NOTHING_REMOVED


def is_being_deleted(leaf: Leaf) -> bool:
    """Whether its deletion was asked for, and neither failed nor is over with the leaf."""
    return leaf.mode is not None and ROWS[leaf.mode].circle is Circle.DELETE and not leaf.is_failed


class _Machine:
    """One machine's leaves at one time."""

    def __init__(self, leaves: Sequence[Leaf], now: datetime, keeps_all: tuple[str, ...]) -> None:
        self._now = now
        self._keeps_all = keeps_all
        self._is_ahead = any(leaf.planned > now for leaf in leaves)
        self._newest_good = max((leaf.timestamp for leaf in leaves if not _why_no_good(leaf)), default="")

    def judged(self, leaf: Leaf, verdict: Verdict) -> Judged:
        """A leaf with what the policy says of it."""
        if is_being_deleted(leaf):
            return Judged(leaf, False, (f"is being deleted{f': {leaf.pruned}' if leaf.pruned else ''}",))
        if leaf.is_failed and leaf.mode is not None and not self._is_ahead:
            return self._failed(leaf)
        reasons = verdict.reasons if verdict.stays else tuple(self._in_vain(leaf))
        reasons = reasons or self._keeps_all
        return Judged(leaf, not reasons, reasons or verdict.reasons)

    def _failed(self, leaf: Leaf) -> Judged:
        since = _moment(leaf)
        what = f"failed with {leaf.return_value} ({meaning_of(leaf.return_value)})"
        reasons = [why for why in [why_held(leaf, self._now)] if why]
        if leaf.is_in_restore:
            reasons.append(f"its restore {what} and is not ended")
        elif leaf.timestamp >= self._newest_good:
            reasons.append(f"{what}, and no newer backup is good")
        elif leaf.mode is Mode.DELETING and self._now < (again := _later(since, ASKED_AGAIN)):
            reasons.append(f"{what}; its deletion is asked for again from {to_timestamp(again)}")
        elif leaf.mode is not Mode.DELETING and self._now < (until := _later(since, FAILED_STAY)):
            reasons.append(f"{what}, which is to be read until {to_timestamp(until)}")
        reasons = reasons or [*self._keeps_all]
        return Judged(leaf, not reasons, tuple(reasons) or (f"{what}, and a newer backup is good",))

    def _in_vain(self, leaf: Leaf) -> Iterator[str]:
        again = _later(_moment(leaf), ASKED_AGAIN)
        if leaf.message.startswith(NOT_DELETED) and self._now < again:
            yield f"{leaf.message}; it is asked for again from {to_timestamp(again)}"


def _backup(leaf: Leaf, restored_elsewhere: Collection[str]) -> Backup:
    is_restored = leaf.is_in_restore or leaf.timestamp in restored_elsewhere
    return Backup(leaf.planned, _why_no_good(leaf), hold_of(leaf), is_restored)


def _why_no_good(leaf: Leaf) -> str:
    """A set that is known: not what an admin, or another tool, merely calls finished."""
    if leaf.is_in_restore and leaf.manifest_digest:
        return ""
    if leaf.mode is None:
        return f"in a mode of another tool ({leaf.raw_mode})"
    if leaf.is_failed:
        return f"failed with {leaf.return_value} ({meaning_of(leaf.return_value)})"
    if leaf.mode is not Mode.FINISHED or leaf.state == NOW:
        return f"at {leaf.raw_mode}"
    return "" if leaf.manifest_digest else f"no set is known of it ({Attribute.MANIFEST_DIGEST} is missing)"


def _what_keeps_all(leaves: Sequence[Leaf], own: Sequence[Leaf]) -> Iterator[str]:
    """What must end before anything of the machine goes: files may be in use below a backup or a restore."""
    newest_good = max((leaf.timestamp for leaf in own if not _why_no_good(leaf)), default="")
    for leaf in leaves:
        if leaf.is_in_restore:
            yield f"a restore is under way ({leaf.timestamp} is at {leaf.raw_mode})"
        elif leaf.is_in_flight and not is_being_deleted(leaf):
            yield f"a backup is under way ({leaf.timestamp} is at {leaf.raw_mode})"
        elif leaf.is_failed and leaf.mode in _WORTH_FINISHING and leaf.timestamp > newest_good:
            yield f"the backup {leaf.timestamp} failed at {leaf.raw_mode} and may be finished yet"


def _moment(leaf: Leaf) -> datetime:
    """When a leaf came to stand as it does; its planned time where State does not say."""
    return from_timestamp(leaf.state) if is_timestamp(leaf.state) else leaf.planned


def _later(moment: datetime, wait: timedelta) -> datetime:
    try:
        return moment + wait
    except OverflowError:
        # Anybody who may write the leaf writes its State, and year 9999 is a time.
        return datetime.max.replace(tzinfo=UTC)
