"""The order in which the machines of a group run on: after their snapshots, and when they are restored together. Pure.

By sstVirtualizationVirtualMachineSequenceStart: a machine waits for those of its group with lower numbers. A saved one
is kept standing still by its agent, so only for as long as its plan says; a restore waits before it touches anything.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from controller.actions import Action, BringInLine, LetRunOn, Step
from controller.decide import key_of
from controller.groups import NO_GROUP, Group, Key, Member
from vmkeep.contract.grouping import Grouping, key_of_group
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode

_NOT_SNAPSHOTTED = (Mode.INITIALIZE, Mode.INITIALIZED, Mode.SNAPSHOT, Mode.SNAPSHOTTING)
_ASKED_OR_AT_WORK = (Mode.SNAPSHOT, Mode.SNAPSHOTTING)
_BEFORE_RESTORED = (
    *(Mode.UNRETAIN_LARGE_FILES, Mode.UNRETAINING_LARGE_FILES, Mode.UNRETAINED_LARGE_FILES),
    *(Mode.RESTORE, Mode.RESTORING),
)


def start_wait_of(group: Group, leaf: Leaf) -> int | None:
    """How many seconds a member may stand still for others, 0 for the first; None where the group has no order."""
    starts = {member.grouping.start for member in group.members} - {None}
    own = next((member.grouping for member in group.members if key_of(member.leaf) == key_of(leaf)), NO_GROUP)
    if len(starts) < 2 or own.start is None:
        return None
    return 0 if own.start == min(start for start in starts if start is not None) else own.start_wait


def may_run_on(groups: Iterable[Group]) -> Iterator[LetRunOn]:
    """Who waits although nobody with a lower number is still to run."""
    for group in groups:
        for member in group.members:
            waits = bool(member.leaf.start_wait) and member.is_in(_ASKED_OR_AT_WORK)
            if waits and not any(_is_still_to_run(other) for other in _before(member, group.members)):
                yield LetRunOn(member.leaf)


def _before(member: Member, members: Iterable[Member]) -> Iterator[Member]:
    """Those with lower numbers; nobody where the member's own number is gone from its plan."""
    own = member.grouping.start
    for other in members:
        if own is not None and other.grouping.start is not None and other.grouping.start < own:
            yield other


def _is_still_to_run(member: Member) -> bool:
    return member.is_in(_NOT_SNAPSHOTTED) and not member.leaf.started


def waiting_restores(
    steps: Iterable[Step], leaves: Sequence[Leaf], groupings: Mapping[str, Grouping]
) -> dict[Key, str]:
    """Which restores are not to touch their machine yet, by `key_of`, and why: another of the group comes first."""
    wanted = [step.leaf for step in steps if _touches_the_machine(step) and step.leaf.group]
    if not wanted:
        return {}
    restored = [Member(leaf, groupings.get(leaf.machine.casefold(), NO_GROUP)) for leaf in leaves if _is_restored(leaf)]
    return {key_of(leaf): why for leaf in wanted if (why := _who_comes_first(leaf, restored))}


def _touches_the_machine(step: Step) -> bool:
    return isinstance(step, BringInLine) or (isinstance(step, Action) and step.mode is Mode.RESTORE)


def _is_restored(leaf: Leaf) -> bool:
    """Whether a leaf's whole machine is being brought back as itself."""
    is_whole = not leaf.wishes.disks and not leaf.wishes.original
    return bool(leaf.group) and is_whole and leaf.mode in _BEFORE_RESTORED and not leaf.is_failed


def _who_comes_first(leaf: Leaf, restored: Sequence[Member]) -> str:
    fellows = [other for other in restored if _group_of(other.leaf) == _group_of(leaf)]
    own = next((member for member in fellows if key_of(member.leaf) == key_of(leaf)), None)
    first = min((other.leaf.machine for other in _before(own, fellows)), default="") if own else ""
    return f"group {leaf.group}: {first} is restored first" if first else ""


def _group_of(leaf: Leaf) -> Key:
    return key_of_group(leaf.group), leaf.timestamp
