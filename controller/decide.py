"""Decides which leaves move, and where to: pure, from what was read and the time now. Called by the cycle.

Hardly any step is more than one claim. A leaf of a foreign mode or with odd values is left alone and never stops the
others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from controller.actions import RESTORES_OWN, Action, BringInLine, PutBack, Removal, Step, has_leftovers
from vmkeep.contract.codes import ReturnValue, meaning_of
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import ROWS, Actor, Circle, Mode, asked, at_work
from vmkeep.contract.names import Attribute
from vmkeep.contract.pruning import NOT_DELETED, was_refused
from vmkeep.contract.timestamps import from_timestamp, is_timestamp, to_timestamp

# How long leaves of a run may come in before somebody other than the run itself sets them going: a run that is still
# adding leaves must not see its first ones merged before its last ones exist.
SETTLE = timedelta(seconds=5)

_BEFORE_THE_BARRIER = (Mode.INITIALIZE, Mode.INITIALIZED, Mode.SNAPSHOT, Mode.SNAPSHOTTING)
_WORTH_FINISHING = (Mode.MERGING, Mode.RETAINING)
# A merge that could not copy frozen images, or lacks its notes, is over: asked again it could only hide why.
_OVER = (ReturnValue.CANNOT_COPY_IMAGE, ReturnValue.MISSING_FILES)
_ASKED_AGAIN = "asked again"
NO_SIGN_OF_LIFE = "no sign of life"
_IS_IT_THERE = "is the agent of its node running, and does sstNode name that node?"
_NOT_OF_A_BACKUP = tuple(row.mode for row in ROWS.values() if row.circle is not Circle.BACKUP)
# Where the machine's entry is rightly being changed, or stays as the restore made it.
_ENTRY_IS_CHANGED = (Mode.UNRETAINED_LARGE_FILES, Mode.RESTORE, Mode.RESTORING, Mode.RESTORED)


@dataclass(frozen=True)
class Bounds:
    """How long is waited and how often is tried."""

    snapshot_deadline: timedelta
    take_up: timedelta
    attempts: int
    back_off: timedelta


@dataclass(frozen=True)
class View:
    """What was read: every leaf that has not ended.

    `changed` says when a leaf was last seen to be written, where the directory tells, and `begun` when a leaf of a run
    was first seen, by the run's timestamp. `complete` are timestamps of runs whose leaves are all there for certain.
    `only` are the folded names of the machines to act on; None means all. `nodes` are the nodes of machines, and
    `deadlines` those of their plans, by folded name, where they matter: when a leaf has been standing for long.
    `epoch` is the one that whoever decides writes with, None without a lease.
    """

    leaves: tuple[Leaf, ...]
    changed: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    begun: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    complete: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    nodes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    deadlines: Mapping[str, timedelta] = field(default_factory=lambda: MappingProxyType({}))
    epoch: int | None = None


def decide(view: View, now: datetime, bounds: Bounds) -> tuple[Step, ...]:
    """What to do now, one step a leaf at most, in the order of the leaves."""
    verdicts = _verdicts(view, now, bounds)
    return tuple(verdict for verdict in verdicts if verdict is not None and not isinstance(verdict, datetime))


def next_look(view: View, now: datetime, bounds: Bounds) -> datetime | None:
    """When something will be due without anybody writing to the directory."""
    return min((due for due in _verdicts(view, now, bounds) if isinstance(due, datetime)), default=None)


def is_ended(leaf: Leaf, bounds: Bounds) -> bool:
    """Whether nothing follows on this leaf by itself: finished, failed for good, or not ours."""
    return not leaf.is_in_flight and not _is_tried_again(leaf, bounds)


def is_over(leaf: Leaf) -> bool:
    """Whether there is nothing left to do for a leaf, by anybody."""
    return leaf.mode is Mode.FINISHED and not _is_untidy(leaf)


def key_of(leaf: Leaf) -> tuple[str, str]:
    """What tells a leaf from every other, however the directory spells its DN."""
    return leaf.machine.casefold(), leaf.timestamp


def asked_since(leaf: Leaf, view: View) -> datetime:
    """When a leaf that stands asked for was asked, as far as the directory tells."""
    return max(leaf.planned, view.changed.get(leaf.dn, leaf.planned))


def _verdicts(view: View, now: datetime, bounds: Bounds) -> list[Step | datetime | None]:
    """For each leaf a step, or the time when one may be due, or None."""
    rules = _Rules(view, now, bounds)
    chosen = (leaf for leaf in view.leaves if view.only is None or leaf.machine.casefold() in view.only)
    return [rules.verdict(leaf) for leaf in chosen]


class _Rules:
    """The rules over one view at one time."""

    def __init__(self, view: View, now: datetime, bounds: Bounds) -> None:
        self._view = view
        self._now = now
        self._bounds = bounds
        self._held_up = {
            leaf.timestamp for leaf in view.leaves if leaf.mode in _BEFORE_THE_BARRIER and not leaf.is_failed
        }
        self._settled_at = _newest_additions(view)
        self._signs_of_life = _signs_of_life(view)

    def verdict(self, leaf: Leaf) -> Step | datetime | None:
        """What to do with one leaf."""
        if self._was_added_too_late(leaf):
            return Removal(leaf, "added by a controller that had lost the lease; where its time is due it comes again")
        if _is_to_be_put_back(leaf):
            return PutBack(leaf)
        if leaf.mode is Mode.FINISHED:
            return self._tidy(leaf) if _is_untidy(leaf) else None
        if was_refused(leaf):
            return self._keep(leaf)
        if leaf.is_failed:
            return self._try_again(leaf) if _is_tried_again(leaf, self._bounds) else None
        return self._restored_or_deleted(leaf) if leaf.mode in _NOT_OF_A_BACKUP else self._backed_up(leaf)

    def _backed_up(self, leaf: Leaf) -> Step | datetime | None:
        match leaf.mode:
            case Mode.INITIALIZE:
                return self._settle(leaf)
            case Mode.INITIALIZED:
                return self._ask(leaf, Mode.SNAPSHOT)
            case Mode.SNAPSHOT:
                return self._give_up(leaf)
            case Mode.SNAPSHOTTED:
                return self._pass_the_barrier(leaf)
            case Mode.MERGED:
                return self._ask(leaf, Mode.RETAIN)
            case Mode.RETAINED:
                return self._end(leaf)
            case _:
                return self._end_what_stands(leaf)

    def _restored_or_deleted(self, leaf: Leaf) -> Step | datetime | None:
        match leaf.mode:
            case Mode.UNRETAIN_SMALL_FILES:
                return self._give_up(leaf)
            case Mode.UNRETAINED_LARGE_FILES:
                return self._restore(leaf)
            case Mode.RESTORED:
                return self._end(leaf)
            case Mode.DELETED:
                return Removal(leaf, "its set is deleted")
            case _:
                return self._end_what_stands(leaf)

    def _was_added_too_late(self, leaf: Leaf) -> bool:
        """What was there when the lease changed hands was marked then; this came after, from who did not know."""
        ours = self._view.epoch
        return leaf.mode is Mode.INITIALIZE and ours is not None and leaf.epoch is not None and leaf.epoch < ours

    def _settle(self, leaf: Leaf) -> Action | datetime:
        due = _later(self._settled_at[leaf.timestamp], SETTLE)
        if leaf.timestamp in self._view.complete or self._now >= due:
            return Action(leaf, Mode.INITIALIZED, to_timestamp(self._now))
        return due

    def _give_up(self, leaf: Leaf) -> Action | datetime | None:
        if not leaf.is_asked(self._now.date()) or not self._is_known_when_asked(leaf):
            return None
        due = _later(self._waits_since(leaf), self._bounds.take_up)
        if self._now < due:
            return due
        what, code, comfort = "snapshot", ReturnValue.NOT_TAKEN_UP, ""
        if leaf.mode is Mode.UNRETAIN_SMALL_FILES:
            # The leaf is the good backup it was before somebody asked.
            what, code, comfort = "restore", ReturnValue.SUCCESS, "nothing was touched; "
        message = (
            f"{leaf.machine}: no agent took the {what} up within {int(self._bounds.take_up.total_seconds())} s; "
            f"{comfort}{_IS_IT_THERE}"
        )
        # With what is left on the leaf the message would go again.
        removed = RESTORES_OWN if has_leftovers(leaf) else ()
        return Action(leaf, Mode.FINISHED, to_timestamp(self._now), code, message, removed=removed)

    def _waits_since(self, leaf: Leaf) -> datetime:
        """An agent that is busy with other machines of its node is not missing: this one waits for its turn."""
        since = asked_since(leaf, self._view)
        return max(since, self._signs_of_life.get(self._view.nodes.get(key_of(leaf)[0], ""), since))

    def _end_what_stands(self, leaf: Leaf) -> Action | datetime | None:
        """End what nobody goes on with, after the plan's deadline; what an agent comes back with then is dropped."""
        deadline, changed = self._view.deadlines.get(key_of(leaf)[0]), self._view.changed.get(leaf.dn)
        if deadline is None or changed is None or not (leaf.is_at_work or leaf.is_asked(self._now.date())):
            return None
        due = _later(changed if leaf.is_at_work else self._waits_since(leaf), deadline)
        return due if self._now < due else _ended(leaf, deadline, to_timestamp(self._now))

    def _is_known_when_asked(self, leaf: Leaf) -> bool:
        # A backup is asked for when it is planned; a restore of it perhaps years later.
        return leaf.mode is Mode.SNAPSHOT or leaf.dn in self._view.changed

    def _pass_the_barrier(self, leaf: Leaf) -> Action | datetime:
        # A slot that is caught up was planned long before anybody could begin.
        begun = max(leaf.planned, self._view.begun.get(leaf.timestamp, leaf.planned))
        due = _later(begun, self._bounds.snapshot_deadline)
        if leaf.timestamp in self._held_up and self._now < due:
            return due
        return self._ask(leaf, Mode.MERGE)

    def _ask(self, leaf: Leaf, mode: Mode) -> Action:
        # Attempts are counted for one step; the next one starts afresh.
        attempts = 0 if leaf.attempts else None
        return Action(
            leaf, mode, NOW, message=_without_asking_again(leaf), attempts=attempts, bandwidth=_given_anew(leaf)
        )

    def _restore(self, leaf: Leaf) -> Step:
        # Single disks change nothing of the machine's entry.
        return BringInLine(leaf) if leaf.entry and not leaf.wishes.disks else self._ask(leaf, Mode.RESTORE)

    def _end(self, leaf: Leaf) -> Step:
        if leaf.wishes.original:
            return _removal_under_another_name(leaf)
        removed = RESTORES_OWN if leaf.mode is Mode.RESTORED else ()
        message = _without_asking_again(leaf)
        now, bandwidth = to_timestamp(self._now), _given_anew(leaf)
        return Action(leaf, Mode.FINISHED, now, message=message, removed=removed, bandwidth=bandwidth)

    def _tidy(self, leaf: Leaf) -> Step:
        """A leaf that somebody backed out of a restore is the backup it was."""
        if leaf.wishes.original:
            return _removal_under_another_name(leaf)
        left = has_leftovers(leaf)
        message = "" if left and leaf.is_good_backup else None  # it told of the restore
        state, removed = _end_of(leaf, self._now), RESTORES_OWN if left else ()
        return Action(leaf, Mode.FINISHED, state, leaf.return_value, message, removed=removed, said="tidied")

    def _keep(self, leaf: Leaf) -> Action:
        """The plan let it go, and nothing of it was removed: it is the good backup it was."""
        message = f"{NOT_DELETED}: {leaf.message or meaning_of(leaf.return_value)}"
        return Action(leaf, Mode.FINISHED, to_timestamp(self._now), message=message, removed=(Attribute.PRUNED,))

    def _try_again(self, leaf: Leaf) -> Action | datetime | None:
        if leaf.mode is None:
            return None
        wait = self._bounds.back_off * 2 ** min(max(leaf.attempts, 0), 10)
        due = _later(_moment(leaf.state) or leaf.planned, wait)
        if self._now < due:
            return due
        attempt = max(leaf.attempts, 0) + 1
        why = leaf.message or meaning_of(leaf.return_value)
        message = f"{_ASKED_AGAIN} ({attempt} of {self._bounds.attempts}) after return value {leaf.return_value}: {why}"
        mode = asked(leaf.mode)
        return Action(leaf, mode, NOW, message=message, attempts=attempt, bandwidth=_given_anew(leaf))


def _ended(leaf: Leaf, deadline: timedelta, now: str) -> Action | None:
    assert leaf.mode is not None, leaf
    seconds = int(deadline.total_seconds())
    if leaf.mode is Mode.RESTORING:
        # Half done perhaps: only its own agent can finish it or take it back, so nobody else is let in.
        message = f"{leaf.machine}: {NO_SIGN_OF_LIFE} for {seconds} s while it is restored; {_IS_IT_THERE}"
        return None if leaf.message == message else Action(leaf, leaf.mode, NOW, message=message)
    if leaf.is_at_work:
        message = f"{leaf.machine}: no sign of life for {seconds} s at {leaf.mode} (vmkeepDeadline); {_IS_IT_THERE}"
        # Another node may be given it: who held it has no say any more.
        return Action(leaf, leaf.mode, now, ReturnValue.NO_SIGN_OF_LIFE, message, removed=(Attribute.AT_NODE,))
    message = f"{leaf.machine}: no agent took {leaf.mode} up within {seconds} s (vmkeepDeadline); {_IS_IT_THERE}"
    return Action(leaf, at_work(leaf.mode), now, ReturnValue.NOT_TAKEN_UP, message)


def _is_to_be_put_back(leaf: Leaf) -> bool:
    """Whether the machine's entry was changed for a restore that did not happen."""
    return bool(leaf.entry_before) and leaf.mode is not None and (leaf.is_failed or leaf.mode not in _ENTRY_IS_CHANGED)


def _is_untidy(leaf: Leaf) -> bool:
    return has_leftovers(leaf) or bool(leaf.wishes.original) or leaf.state == NOW


def _removal_under_another_name(leaf: Leaf) -> Removal:
    return Removal(leaf, f"it restored a set of {leaf.wishes.original} and is no backup of this machine")


def _end_of(leaf: Leaf, now: datetime) -> str:
    return to_timestamp(now) if leaf.state == NOW else leaf.state


def _is_tried_again(leaf: Leaf, bounds: Bounds) -> bool:
    is_over = leaf.mode is Mode.MERGING and leaf.return_value in _OVER
    return leaf.is_failed and leaf.mode in _WORTH_FINISHING and not is_over and leaf.attempts < bounds.attempts


def _newest_additions(view: View) -> dict[str, datetime]:
    """For each run that has leaves waiting to be set going, when the last of them came in."""
    newest: dict[str, datetime] = {}
    for leaf in view.leaves:
        if leaf.mode is Mode.INITIALIZE:
            added = _moment(leaf.state) or leaf.planned
            newest[leaf.timestamp] = max(added, newest.get(leaf.timestamp, added))
    return newest


def _signs_of_life(view: View) -> dict[str, datetime]:
    """For each node, when its agent last wrote to a leaf."""
    newest: dict[str, datetime] = {}
    for leaf in view.leaves:
        node, changed = view.nodes.get(key_of(leaf)[0]), view.changed.get(leaf.dn)
        if node and changed and leaf.mode and ROWS[leaf.mode].writer is Actor.AGENT:
            newest[node] = max(changed, newest.get(node, changed))
    return newest


def _given_anew(leaf: Leaf) -> int | None:
    """What was given to the step before is over; whoever has room to give says how much there is now."""
    return 0 if leaf.bandwidth else None


def _without_asking_again(leaf: Leaf) -> str | None:
    """Takes our own remark away once the step went well; what the agent said stays."""
    return "" if leaf.message.startswith(_ASKED_AGAIN) else None


def _moment(state: str) -> datetime | None:
    return from_timestamp(state) if is_timestamp(state) else None


def _later(moment: datetime, wait: timedelta) -> datetime:
    try:
        return moment + wait
    except OverflowError:
        # Leaves are named by people too, and year 9999 is a name.
        return datetime.max.replace(tzinfo=UTC)
