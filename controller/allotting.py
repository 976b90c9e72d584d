"""Which of the steps that are due are taken now, by groups and budgets. Pure.

Snapshots, merges and retains are asked for as far as there is room; everything else is taken. Called by the admission.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from controller.actions import Action, Step
from controller.budgets import AtWork, Budget, Piece, Wish, fit
from controller.decide import key_of
from controller.groups import Group, Key, groups_of
from controller.places import Place
from controller.start_order import may_run_on, start_waits, waiting_restores
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode, at_work

KINDS = (Mode.SNAPSHOT, Mode.MERGE, Mode.RETAIN)
BEGUN = ""  # before every slot: a group that has begun is asked to its end
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Room:
    """What there is: budgets by the mode that asks, places by folded name, nodes that give no sign of life."""

    budgets: Mapping[Mode, Budget]
    places: Mapping[str, Place]
    down: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Allotted:
    """The steps to take, each group's side by side, and why the leaves that wait do, by `key_of`."""

    steps: tuple[Step, ...]
    waiting: Mapping[tuple[str, str], str] = field(default_factory=dict)


def allot(steps: Sequence[Step], leaves: Sequence[Leaf], since: Mapping[str, datetime], room: Room) -> Allotted:
    """What to do now. `leaves` are all that stand, `since` when each was last written, by its DN."""
    groupings = {name: place.grouping for name, place in room.places.items()}
    groups = groups_of(leaves, groupings)
    held_back = waiting_restores(steps, leaves, groupings)
    steps = [step for step in steps if key_of(step.leaf) not in held_back]
    if not groups and not any(budget.limits_anything for budget in room.budgets.values()):
        return Allotted(tuple(steps), held_back)
    asks: list[Step] = []
    waiting: dict[tuple[str, str], str] = dict(held_back)
    for kind in KINDS:
        wanted = {key_of(step.leaf): step for step in steps if isinstance(step, Action) and step.mode is kind}
        if wanted:
            allotting = _Kind(kind, wanted, leaves, groups if kind is Mode.SNAPSHOT else {}, since, room)
            taken, left = allotting.answer()
            asks += taken
            waiting |= left
    others = (step for step in steps if not (isinstance(step, Action) and step.mode in KINDS))
    return Allotted((*others, *asks, *may_run_on(groups.values())), waiting)


class _Kind:
    """One kind of work at one time."""

    def __init__(
        self,
        kind: Mode,
        wanted: Mapping[tuple[str, str], Action],
        leaves: Sequence[Leaf],
        groups: Mapping[Key, Group],
        since: Mapping[str, datetime],
        room: Room,
    ) -> None:
        self._kind = kind
        self._wanted = wanted
        self._leaves = leaves
        self._groups = groups
        self._since = since
        self._room = room
        self._asked: dict[str, tuple[Action, ...]] = {}  # by the name of the wish
        self._held: dict[tuple[str, str], str] = {}

    def answer(self) -> tuple[list[Step], dict[tuple[str, str], str]]:
        """What is asked for, and why the rest waits."""
        wishes = [*self._of_groups(), *self._of_single_ones()]
        at_work = [*self._at_work(), *self._reserved()]
        found = fit(wishes, at_work, self._budget, self._room.down)
        steps: list[Step] = [self._with_its_share(action) for name in found.fitting for action in self._asked[name]]
        waiting = {key_of(one.leaf): why for name, why in found.waiting.items() for one in self._asked[name]}
        return steps, waiting | self._held

    @property
    def _budget(self) -> Budget:
        return self._room.budgets.get(self._kind, Budget())

    def _with_its_share(self, action: Action) -> Action:
        given = self._budget.given_to(self._piece(action.leaf))
        return replace(action, bandwidth=given) if given else action

    def _of_groups(self) -> Iterator[Wish]:
        """One wish a group: who is to be asked now, and room for all who are to be asked after them."""
        for key, group in self._groups.items():
            name = _told(key)
            due = {key_of(member.leaf) for member in group.next}
            own = [self._wanted[key_of(m.leaf)] for m in group.next if key_of(m.leaf) in self._wanted]
            later = [m.leaf for m in group.waiting if key_of(m.leaf) not in due]
            why = "others of it come first" if group.is_ready else "not all leaves of it are ready"
            self._held |= {key_of(leaf): f"group {key[0]}: {why}" for leaf in later}
            if not own:
                continue
            waits = start_waits(group)
            self._asked[name] = tuple(
                replace(action, group=self._name_of(action.leaf, key), start_wait=waits.get(key_of(action.leaf)))
                for action in own
            )
            leaves = [action.leaf for action in own] + ([] if group.has_begun else later)
            since = min(self._since.get(leaf.dn, _LONG_AGO) for leaf in leaves)
            yield Wish(name, BEGUN if group.has_begun else key[1], since, tuple(map(self._piece, leaves)), name)

    def _of_single_ones(self) -> Iterator[Wish]:
        of_groups = {key_of(member.leaf) for group in self._groups.values() for member in group.members}
        for key, action in self._wanted.items():
            if key not in of_groups:
                leaf, name = action.leaf, f"{key[1]} {key[0]}"
                self._asked[name] = (action,)
                yield Wish(name, leaf.timestamp, self._since.get(leaf.dn, _LONG_AGO), (self._piece(leaf),))

    def _at_work(self) -> Iterable[AtWork]:
        working = (self._kind, at_work(self._kind))
        group_of = {key_of(m.leaf): _told(key) for key, group in self._groups.items() for m in group.members}
        for leaf in self._leaves:
            if leaf.mode in working and not leaf.is_failed:
                yield AtWork(self._piece(leaf), group_of.get(key_of(leaf), ""), leaf.bandwidth)

    def _reserved(self) -> Iterator[AtWork]:
        """The room of those who are to be asked after others of their group."""
        for key, group in self._groups.items():
            if group.has_begun:
                due = {key_of(member.leaf) for member in group.next}
                for member in group.waiting:
                    if key_of(member.leaf) not in due:
                        yield AtWork(self._piece(member.leaf), _told(key))

    def _piece(self, leaf: Leaf) -> Piece:
        place = self._room.places.get(leaf.machine.casefold())
        return place.piece if place else Piece(leaf.machine)

    def _name_of(self, leaf: Leaf, key: Key) -> str:
        place = self._room.places.get(leaf.machine.casefold())
        return leaf.group or (place.grouping.group if place else "") or key[0]


def _told(key: Key) -> str:
    return f"group {key[0]} of {key[1]}"
