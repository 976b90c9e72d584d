"""What fits beside what is at work: never too much, nothing idle, nobody forgotten, in the order that is promised."""

import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controller.budgets import AtWork, Budget, Piece, Wish, fit, places_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NODES, ROOTS = ("n1", "n2", "n3"), ("/b", "/c")
LIMITS = st.none() | st.integers(1, 4)
BUDGETS = st.builds(Budget, LIMITS, LIMITS, LIMITS)


@st.composite
def wishes(draw: st.DrawFn, *, groups: bool = True, roots: Sequence[str] = ROOTS) -> list[Wish]:
    """Machines that wait, some of them in groups."""
    made = []
    for number in range(draw(st.integers(0, 12))):
        size = draw(st.integers(1, 4)) if groups and draw(st.booleans()) else 1
        pieces = tuple(
            Piece(f"m{number}-{each}", draw(st.sampled_from(NODES)), draw(st.sampled_from(roots)))
            for each in range(size)
        )
        since = NOON + timedelta(seconds=draw(st.integers(0, 3)))
        made.append(Wish(f"w{number}", draw(st.sampled_from("ABC")), since, pieces, f"g{number}" if size > 1 else ""))
    return made


@st.composite
def work(draw: st.DrawFn) -> list[AtWork]:
    """What is at work already, perhaps more than is allowed now."""
    number = draw(st.integers(0, 4))
    pieces = [Piece(f"old{i}", draw(st.sampled_from(NODES)), draw(st.sampled_from(ROOTS))) for i in range(number)]
    return [AtWork(piece) for piece in pieces]


def taken(pieces: Sequence[Piece], down: Sequence[str] = ()) -> Counter[tuple[str, str]]:
    return Counter(place for piece in pieces for place in places_of(piece, down))


@given(wishes(), work(), BUDGETS)
def test_no_place_takes_more_than_its_limit_but_a_group_that_is_alone_there(
    asked: list[Wish], at_work: list[AtWork], budget: Budget
) -> None:
    answer = fit(asked, at_work, budget, ())
    before = taken([one.piece for one in at_work])
    new = {wish.name: taken(wish.pieces) for wish in asked if wish.name in answer.fitting}
    for place in {place for counts in new.values() for place in counts}:
        limit = budget.limit(place)
        there = [name for name, counts in new.items() if counts[place]]
        total = before[place] + sum(new[name][place] for name in there)
        if limit is not None and total > limit:
            [alone] = there
            assert before[place] == 0
            assert alone in {wish.name for wish in asked if wish.group}


@given(wishes(), work(), BUDGETS)
def test_who_waits_would_be_too_much_or_waits_behind_an_older_one_in_the_same_place(
    asked: list[Wish], at_work: list[AtWork], budget: Budget
) -> None:
    answer = fit(asked, at_work, budget, ())
    assert {*answer.fitting, *answer.waiting} == {wish.name for wish in asked}
    fitting = [piece for wish in asked if wish.name in answer.fitting for piece in wish.pieces]
    held = taken([one.piece for one in at_work]) + taken(fitting)
    waiting = [wish for wish in asked if wish.name in answer.waiting]
    for wish in waiting:
        own = taken(wish.pieces)
        full = {place for place, number in own.items() if _is_too_much(held[place], number, budget.limit(place))}
        others = [other for other in waiting if other is not wish and other.slot <= wish.slot]
        assert full or any(own.keys() & taken(other.pieces).keys() for other in others)


def _is_too_much(held: int, more: int, limit: int | None) -> bool:
    return limit is not None and held > 0 and held + more > limit


@given(wishes(groups=False, roots=("/b",)), work(), LIMITS, LIMITS)
def test_single_machines_are_taken_as_a_slow_hand_would_take_them(
    asked: list[Wish], at_work: list[AtWork], overall: int | None, per_node: int | None
) -> None:
    budget = Budget(overall, per_node)
    assert fit(asked, at_work, budget, ()).fitting == tuple(_by_hand(asked, at_work, overall, per_node))


def _by_hand(asked: list[Wish], at_work: list[AtWork], overall: int | None, per_node: int | None) -> list[str]:
    """One after the other: the oldest slot; there the node with least at hand; there who has waited longest."""
    load = Counter(one.piece.node for one in at_work)
    left, taken_now = list(asked), []
    while True:
        total = load.total()
        could = [w for w in left if not _full(total, overall) and not _full(load[w.pieces[0].node], per_node)]
        if not could:
            return taken_now
        best = min(could, key=lambda w: (w.slot, load[w.pieces[0].node], w.since, w.name))
        left.remove(best)
        load[best.pieces[0].node] += 1
        taken_now.append(best.name)


def _full(held: int, limit: int | None) -> bool:
    return limit is not None and held >= limit


@given(wishes(), BUDGETS, st.integers(0, 2**32))
def test_everybody_has_their_turn_though_younger_ones_keep_coming(asked: list[Wish], budget: Budget, seed: int) -> None:
    chance = random.Random(seed)
    waiting, at_work = list(asked), list[AtWork]()
    for night in range(400):
        if not any(wish in waiting for wish in asked):
            return
        node = chance.choice(NODES)
        waiting.append(Wish(f"late{night}", "D", NOON + timedelta(hours=night), (Piece(f"late{night}", node, "/b"),)))
        fitting = fit(waiting, at_work, budget, ()).fitting
        at_work += [AtWork(piece, wish.group) for wish in waiting if wish.name in fitting for piece in wish.pieces]
        waiting = [wish for wish in waiting if wish.name not in fitting]
        if at_work:
            at_work.remove(chance.choice(at_work))
    raise AssertionError(f"still waiting: {[wish.name for wish in asked if wish in waiting]}")


@given(wishes(groups=False), BUDGETS)
def test_a_node_that_is_down_changes_nothing_for_the_others(asked: list[Wish], budget: Budget) -> None:
    """Whatever it was asked for, and however much of it waits."""
    stuck = [AtWork(Piece(f"stuck{number}", "n1", "/b")) for number in range(6)]
    others = [wish for wish in asked if wish.pieces[0].node != "n1"]
    without = fit(others, (), budget, ("n1",)).fitting
    assert fit(asked, stuck, budget, ("n1",)).fitting == without


def test_a_node_that_is_down_is_asked_for_one_at_a_time() -> None:
    asked = [Wish(f"w{number}", "A", NOON, (Piece(f"m{number}", "n1", "/b"),)) for number in range(3)]
    answer = fit(asked, (), Budget(overall=2), ("n1",))
    assert answer.fitting == ("w0",)
    assert set(answer.waiting.values()) == {"node n1 gives no sign of life and has been asked for one already"}


def test_room_that_a_group_waits_for_is_not_given_to_younger_ones() -> None:
    group = Wish("g", "A", NOON, (Piece("a", "n1", "/b"), Piece("b", "n2", "/b")), "g")
    single = Wish("s", "B", NOON, (Piece("c", "n3", "/b"),))
    elsewhere = Wish("e", "B", NOON, (Piece("d", "n3", "/c"),))
    at_work = [AtWork(Piece("old", "n3", "/b"))]
    answer = fit([group, single, elsewhere], at_work, Budget(per_root=2), ())
    assert answer.fitting == ("e",)
    assert answer.waiting == {"g": "1 of 2 in /b taken", "s": "1 of 2 in /b taken"}
