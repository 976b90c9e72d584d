"""What may be at work at once: of all that is to be asked for, what fits beside what is at work. Pure.

A budget limits one kind of work in all, for each node, and for each backup root, and how fast it goes there
(`bandwidths`). Called by the admission.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from controller.bandwidths import NOT_LIMITED, Bandwidths, lowest

# What a limit is of: ("", "") for all, ("node", its name) or ("root", its path).
Place: TypeAlias = tuple[str, str]
OVERALL: Place = ("", "")
_ALREADY_ASKED: str = "down"


@dataclass(frozen=True)
class Budget:
    """How much of one kind of work at once; None: as much as there is."""

    overall: int | None = None
    per_node: int | None = None
    per_root: int | None = None
    bandwidths: Bandwidths = NOT_LIMITED

    @property
    def limits_anything(self) -> bool:
        """Whether it says anything."""
        return (self.overall, self.per_node, self.per_root) != (None, None, None)

    def limit(self, place: Place) -> int | None:
        """What it says of one place; of a node that is down, that it is asked for one thing at a time."""
        limits = {"": self.overall, "node": self.per_node, "root": self.per_root, _ALREADY_ASKED: 1}
        return limits[place[0]]

    def share(self, place: Place) -> int:
        """What each piece may take of a place's bandwidth."""
        return self.bandwidths.share(place[0], self.limit(place))

    def given_to(self, piece: "Piece") -> int:
        """What a piece is to be asked for with: also of what a node takes up that is down, which may come back."""
        return lowest(self.share(place) for place in places_of(piece, ()))


@dataclass(frozen=True)
class Piece:
    """One machine's share. `node` and `root` are "" where nobody knows them."""

    machine: str
    node: str = ""
    root: str = ""


@dataclass(frozen=True)
class Wish:
    """What is to be asked for together or not at all, of one `slot` ("" comes before all) and waiting `since` then.

    `group` ties it to what is at work of the same group: together they may be more than a limit, with nothing else.
    """

    name: str
    slot: str
    since: datetime
    pieces: tuple[Piece, ...]
    group: str = ""


@dataclass(frozen=True)
class AtWork:
    """One piece that was asked for, or is being worked on; `given` is its bandwidth as far as it has one."""

    piece: Piece
    group: str = ""
    given: int = 0


@dataclass(frozen=True)
class Answer:
    """The names of the wishes that fit, in the order to ask in, and of the others the reason."""

    fitting: tuple[str, ...]
    waiting: dict[str, str]


def fit(wishes: Sequence[Wish], at_work: Iterable[AtWork], budget: Budget, down: Collection[str]) -> Answer:
    """What to ask for now.

    The oldest slot first; within one the nodes take turns, where one with work at hand has had as many; on one node who
    has waited longest. Nobody goes ahead of an older one to a place where that one waits, and room of the oldest of all
    is kept from younger slots: it could miss it for ever. `down` are nodes that give no sign of life: what they were
    asked for takes up nothing but their own room, and they are asked for one at a time.
    """
    held = _Held(budget, down, at_work)
    fitting: list[str] = []
    waiting: dict[str, str] = {}
    oldest = min((wish for wish in wishes if not held.is_down(wish)), key=_age, default=None)
    for wish in _in_turn(wishes, held):
        if oldest and oldest.name in waiting and wish.slot > oldest.slot:
            held.keep_for(oldest)
            oldest = None
        full = held.full_for(wish)
        if full:
            held.wait(full)
            waiting[wish.name] = held.told(full[0])
        else:
            held.take(wish)
            fitting.append(wish.name)
    return Answer(tuple(fitting), waiting)


def places_of(piece: Piece, down: Collection[str]) -> tuple[Place, ...]:
    """Where a piece takes up room."""
    if piece.node in down:
        return (("node", piece.node), (_ALREADY_ASKED, piece.node))
    named = (("node", piece.node), ("root", piece.root))
    return (OVERALL, *(place for place in named if place[1]))


@dataclass
class _Held:
    """How much of each place is taken, all in all and by each group, and where somebody waits."""

    budget: Budget
    down: Collection[str]
    at_work: Iterable[AtWork]
    _taken: Counter[Place] = field(default_factory=Counter)
    _given: Counter[Place] = field(default_factory=Counter)
    _by_group: Counter[tuple[str, Place]] = field(default_factory=Counter)
    _awaited: set[Place] = field(default_factory=set)

    def __post_init__(self) -> None:
        for one in self.at_work:
            self._add(one.piece, one.group, one.given)

    def turns_had(self, node: str) -> int:
        """How much a node has at hand."""
        return self._taken["node", node]

    def full_for(self, wish: Wish) -> list[Place]:
        """The places that do not take it now."""
        # A group does not wait for a node that is down.
        pieces = (piece for piece in wish.pieces if not (wish.group and piece.node in self.down))
        needed = Counter(place for piece in pieces for place in places_of(piece, self.down))
        return [place for place, number in needed.items() if not self._takes(place, number, wish.group)]

    def _takes(self, place: Place, number: int, group: str) -> bool:
        limit = self.budget.limit(place)
        if limit is None:
            return True
        if self._is_too_fast(place, number):
            return False
        is_alone = bool(group) and self._taken[place] == self._by_group[group, place]
        return place not in self._awaited and (is_alone or self._taken[place] + number <= limit)

    def _is_too_fast(self, place: Place, number: int = 1) -> bool:
        """Whether shares for so many more are not there: earlier settings may have given more than a share."""
        share = self.budget.share(place)
        return bool(share) and self._given[place] + number * share > self.budget.bandwidths.total(place[0])

    def is_down(self, wish: Wish) -> bool:
        """Whether nothing of it can go on."""
        return all(piece.node in self.down for piece in wish.pieces)

    def keep_for(self, wish: Wish) -> None:
        """Keep room where there is some: what it waits for may come free when this is full again.

        Not overall for a single machine: whatever comes free for it there comes free overall too.
        """
        full = self.full_for(wish)
        for piece in wish.pieces:
            for place in places_of(piece, self.down):
                if place not in full and (wish.group or place != OVERALL):
                    self._taken[place] += 1
                    self._given[place] += self.budget.share(place)

    def take(self, wish: Wish) -> None:
        """It is asked for."""
        for piece in wish.pieces:
            self._add(piece, wish.group, self.budget.given_to(piece))

    def wait(self, full: Iterable[Place]) -> None:
        """Somebody waits for these places: nobody younger goes there now."""
        self._awaited.update(full)

    def told(self, place: Place) -> str:
        """Why something waits, for people."""
        kind, name = place
        where = {"": "overall", "node": f"on node {name}", "root": f"in {name}"}.get(kind)
        if where is None:
            return f"node {name} gives no sign of life and has been asked for one already"
        taken, limit = self._taken[place], self.budget.limit(place)
        if limit and taken < limit and self._is_too_fast(place):
            return f"{self._given[place]} of {self.budget.bandwidths.total(kind)} MiB/s {where} given"
        return f"{taken} of {limit} {where} taken"

    def _add(self, piece: Piece, group: str, given: int) -> None:
        for place in places_of(piece, self.down):
            self._taken[place] += 1
            self._given[place] += given or self.budget.share(place)
            self._by_group[group, place] += 1


def _in_turn(wishes: Sequence[Wish], held: _Held) -> list[Wish]:
    """The wishes in the order in which they are looked at."""
    waited = sorted(wishes, key=_age)
    had: Counter[str] = Counter()
    turns: dict[str, int] = {}
    for wish in waited:
        nodes = {piece.node for piece in wish.pieces}
        turns[wish.name] = min((held.turns_had(node) + had[node] for node in nodes), default=0)
        had.update(nodes)
    return sorted(waited, key=lambda wish: (wish.slot, turns[wish.name]))


def _age(wish: Wish) -> tuple[str, datetime, str]:
    return wish.slot, wish.since, wish.name
