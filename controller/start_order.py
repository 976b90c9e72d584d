"""The order in which the machines of a group run on: after their snapshots, and when they are restored together. Pure.

By sstVirtualizationVirtualMachineSequenceStart: a machine waits for those of its group with lower numbers. A saved one
is kept standing still by its agent, so only for as long as its plan says; a restore waits before it touches anything.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from controller.actions import Action, BringInLine, LetRunOn, Step
from controller.decide import NO_SIGN_OF_LIFE, key_of
from controller.groups import NO_GROUP, Group, Key
from vmkeep.contract.grouping import Grouping, key_of_group
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import Mode

_NOT_SNAPSHOTTED = (Mode.INITIALIZE, Mode.INITIALIZED, Mode.SNAPSHOT, Mode.SNAPSHOTTING)
_ASKED_OR_AT_WORK = (Mode.SNAPSHOT, Mode.SNAPSHOTTING)
_UNDER_WAY = (Mode.UNRETAINING_LARGE_FILES, Mode.UNRETAINED_LARGE_FILES, Mode.RESTORE, Mode.RESTORING)


def start_waits(group: Group) -> dict[tuple[str, str], int]:
    """How many seconds each member may stand still for others, by `key_of`: 0 for the first; empty without an order."""
    numbered = {key_of(one.leaf): one.grouping for one in group.members if one.grouping.start is not None}
    first = _lowest(grouping.start for grouping in numbered.values())
    if all(grouping.start == first for grouping in numbered.values()):
        return {}
    return {key: 0 if grouping.start == first else grouping.start_wait for key, grouping in numbered.items()}


def may_run_on(groups: Iterable[Group]) -> Iterator[LetRunOn]:
    """Who waits although nobody with a lower number is still to run; also who has lost its number meanwhile."""
    for group in groups:
        waiting = [one for one in group.members if one.leaf.start_wait and one.is_in(_ASKED_OR_AT_WORK)]
        if not waiting:
            continue
        to_run = (one for one in group.members if one.is_in(_NOT_SNAPSHOTTED) and not one.leaf.started)
        next_one = _lowest(one.grouping.start for one in to_run)
        for one in waiting:
            if next_one is None or one.grouping.start is None or one.grouping.start <= next_one:
                yield LetRunOn(one.leaf)


def waiting_restores(
    steps: Iterable[Step], leaves: Sequence[Leaf], groupings: Mapping[str, Grouping]
) -> dict[tuple[str, str], str]:
    """Which restores are not to touch their machine yet, by `key_of`, and why: another of the group comes first."""
    wanted = [step.leaf for step in steps if _touches_the_machine(step) and _is_whole(step.leaf)]
    if not wanted:
        return {}
    first = _first_of_each_group(leaves, groupings)
    waiting: dict[tuple[str, str], str] = {}
    for leaf in wanted:
        own, known = _start_of(leaf, groupings), first.get(_group_of(leaf))
        if own is not None and known is not None and known[0] < own:
            waiting[key_of(leaf)] = f"group {leaf.group}: {known[1].machine} is restored first"
    return waiting


def _first_of_each_group(leaves: Iterable[Leaf], groupings: Mapping[str, Grouping]) -> dict[Key, tuple[int, Leaf]]:
    """The lowest number of those whose restore is under way, and whose it is."""
    first: dict[Key, tuple[int, Leaf]] = {}
    for leaf in leaves:
        start = _start_of(leaf, groupings)
        if start is None or not _is_under_way(leaf):
            continue
        known = first.get(_group_of(leaf))
        if known is None or (start, leaf.machine) < (known[0], known[1].machine):
            first[_group_of(leaf)] = (start, leaf)
    return first


def _touches_the_machine(step: Step) -> bool:
    return isinstance(step, BringInLine) or (isinstance(step, Action) and step.mode is Mode.RESTORE)


def _is_whole(leaf: Leaf) -> bool:
    """Whether a whole machine of a group is brought back as itself."""
    return bool(leaf.group) and not leaf.wishes.disks and not leaf.wishes.original


def _is_under_way(leaf: Leaf) -> bool:
    """Whether a restore can be expected to come to its end: it is begun, and its agent has not been silent for long."""
    is_silent = leaf.mode is Mode.RESTORING and NO_SIGN_OF_LIFE in leaf.message
    is_asked = leaf.mode is Mode.UNRETAIN_LARGE_FILES and leaf.state == NOW and not leaf.execution_date
    return _is_whole(leaf) and not leaf.is_failed and not is_silent and (is_asked or leaf.mode in _UNDER_WAY)


def _group_of(leaf: Leaf) -> Key:
    return key_of_group(leaf.group), leaf.timestamp


def _start_of(leaf: Leaf, groupings: Mapping[str, Grouping]) -> int | None:
    return groupings.get(leaf.machine.casefold(), NO_GROUP).start


def _lowest(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
