"""Machines that are to be one instant: which are asked for their snapshot now, and what became of them. Pure.

A group is the leaves of one time whose machines' plans name it; what a leaf says itself counts more, it was asked so.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from controller.decide import Bounds, is_ended
from vmkeep.contract.codes import meaning_of
from vmkeep.contract.grouping import CONSISTENT, INCONSISTENT, Grouping, from_instant, is_inconsistent, key_of_group
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import ROWS, Circle, Mode

Key: TypeAlias = tuple[str, str]  # the group's name as it compares, and the time of the leaves
NO_GROUP = Grouping()
_NOT_READY = (Mode.INITIALIZE,)
_NOT_BEGUN = (Mode.INITIALIZE, Mode.INITIALIZED)
_NOT_AT_WORK = (*_NOT_BEGUN, Mode.SNAPSHOT)
_NOT_SNAPSHOTTED = (*_NOT_AT_WORK, Mode.SNAPSHOTTING)


@dataclass(frozen=True)
class Member:
    """One machine's leaf in a group."""

    leaf: Leaf
    grouping: Grouping

    def is_in(self, modes: Collection[Mode]) -> bool:
        """Whether its leaf stands in one of these, and has not failed there."""
        return self.leaf.mode in modes and not self.leaf.is_failed


@dataclass(frozen=True)
class Group:
    """The leaves of one group and time."""

    key: Key
    members: tuple[Member, ...]

    @property
    def has_begun(self) -> bool:
        """Whether anybody has been asked for a snapshot."""
        return any(not member.is_in(_NOT_BEGUN) for member in self.members)

    @property
    def waiting(self) -> tuple[Member, ...]:
        """Who is still to be asked."""
        return tuple(member for member in self.members if member.is_in((Mode.INITIALIZED,)))

    @property
    def is_ready(self) -> bool:
        """Whether every leaf that came in may be asked."""
        return not any(member.is_in(_NOT_READY) for member in self.members)

    @property
    def next(self) -> tuple[Member, ...]:
        """Who is to be asked now: nobody while leaves are still to be ready, then by the order of stopping.

        The next number is asked once all of the lower ones are at work or beyond. Within one number who is to start
        first is asked first.
        """
        if not self.is_ready:
            return ()
        places = [member.grouping.stop for member in self.members if member.is_in(_NOT_AT_WORK)]
        lowest = min((place for place in places if place is not None), default=None)
        now = [member for member in self.waiting if member.grouping.stop in (None, lowest)]
        return tuple(sorted(now, key=_starting_order))


def groups_of(leaves: Iterable[Leaf], groupings: Mapping[str, Grouping]) -> dict[Key, Group]:
    """The groups that backups under way belong to. `groupings` by folded name of the machine."""
    found: dict[Key, list[Member]] = {}
    for leaf in leaves:
        own = groupings.get(leaf.machine.casefold(), NO_GROUP)
        name = leaf.group or (own.group if leaf.mode in _NOT_AT_WORK else "")
        if name and is_of_a_backup(leaf):
            found.setdefault((key_of_group(name), leaf.timestamp), []).append(Member(leaf, own))
    return {key: Group(key, tuple(members)) for key, members in found.items()}


def is_of_a_backup(leaf: Leaf) -> bool:
    """Whether a leaf stands in the walk of a backup; a restore of it says nothing of its group."""
    return leaf.mode is not None and ROWS[leaf.mode].circle is Circle.BACKUP


def _starting_order(member: Member) -> tuple[bool, int, str]:
    start = member.grouping.start
    return start is None, start or 0, member.leaf.machine


@dataclass(frozen=True)
class Verdict:
    """What is said of a group on each of its leaves. `spread` in seconds, None where not two instants are known."""

    key: Key
    name: str
    spread: float | None
    reasons: tuple[str, ...] = ()

    @property
    def consistency(self) -> str:
        """For the leaves."""
        return f"{INCONSISTENT}: {'; '.join(self.reasons)}" if self.reasons else CONSISTENT


def is_to_be_judged(group: Group, bounds: Bounds) -> bool:
    """Whether something is to be said of a group that its leaves do not say yet."""
    if any(member.is_in(_NOT_SNAPSHOTTED) for member in group.members):
        return False
    return any(asks_for_a_verdict(member.leaf, bounds) for member in group.members)


def asks_for_a_verdict(leaf: Leaf, bounds: Bounds) -> bool:
    """Whether a leaf of a group does not say yet what is to be said."""
    has_failed_since = _has_failed(leaf, bounds) and not is_inconsistent(leaf.group_consistency)
    return not leaf.group_consistency or has_failed_since


def judge(key: Key, leaves: Collection[Leaf], expected: Iterable[str], bounds: Bounds) -> Verdict:
    """What became of a group. `leaves` are all of its time, ended ones too; `expected` are its machines by plan."""
    present = {leaf.machine.casefold() for leaf in leaves}
    missing = sorted(machine for machine in expected if machine.casefold() not in present)
    reasons = [
        *(f"{leaf.machine} {why}" for leaf in sorted(leaves, key=_name) if (why := _failure(leaf, bounds))),
        *(f"{machine} has no leaf of this time" for machine in missing),
    ]
    name = next((leaf.group for leaf in leaves if leaf.group), key[0])
    return Verdict(key, name, spread_of(leaves), tuple(reasons))


def spread_of(leaves: Iterable[Leaf]) -> float | None:
    """Seconds from the first instant to the last, by the clocks of the nodes; None where not two are known."""
    instants = list(_instants(leaves))
    return (max(instants) - min(instants)).total_seconds() if len(instants) > 1 else None


def _instants(leaves: Iterable[Leaf]) -> Iterator[datetime]:
    for leaf in leaves:
        instant = from_instant(leaf.instant)
        if instant is not None:
            yield instant


def _has_failed(leaf: Leaf, bounds: Bounds) -> bool:
    return bool(leaf.return_value) and is_ended(leaf, bounds)


def _failure(leaf: Leaf, bounds: Bounds) -> str:
    """Why a leaf is no part of one instant, "" where it is or may yet be."""
    if not is_of_a_backup(leaf):
        return ""  # it was a good backup once
    if _has_failed(leaf, bounds):
        where = "" if leaf.mode is Mode.FINISHED else f" in {leaf.raw_mode}"
        return f"failed{where} (return value {leaf.return_value}, {meaning_of(leaf.return_value)})"
    return "" if leaf.instant else "does not know its instant"


def _name(leaf: Leaf) -> str:
    return leaf.machine
