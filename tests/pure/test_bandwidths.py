"""What is given of a bandwidth: never more in any place than its total, in whatever order work comes and ends."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controller.bandwidths import Bandwidths
from controller.budgets import AtWork, Budget, Piece, Wish, fit, places_of
from tests.pure.controlled_cluster import ControlledCluster
from vmkeep.contract.modes import Mode

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PIECES = st.builds(Piece, st.uuids().map(str), st.sampled_from(("n1", "n2", "")), st.sampled_from(("/b", "/c", "")))


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    """Counts, and beside some of them a bandwidth that is enough for each."""
    counts = [draw(st.none() | st.integers(1, 4)) for _ in range(3)]
    totals = [draw(st.just(0) | st.integers(count, 40)) if count else 0 for count in counts]
    return Budget(*counts, Bandwidths(*totals))


@dataclass(frozen=True)
class Turn:
    """What comes, who ends (by position), and what the settings are from now on (None: as before)."""

    come: tuple[Piece, ...]
    end: tuple[int, ...]
    settings: Budget | None


TURNS = st.lists(
    st.builds(
        Turn,
        st.lists(PIECES, max_size=4).map(tuple),
        st.lists(st.integers(0, 20), max_size=3).map(tuple),
        st.none() | budgets(),
    ),
    max_size=12,
)


def given_in(at_work: list[AtWork]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for one in at_work:
        for place in places_of(one.piece, ()):
            found[place] += one.given
    return found


def asked_for(waiting: list[Wish], at_work: list[AtWork], budget: Budget) -> list[AtWork]:
    fitting = fit(waiting, at_work, budget, ()).fitting
    pieces = (wish.pieces[0] for wish in waiting if wish.name in fitting)
    return [AtWork(piece, given=budget.given_to(piece)) for piece in pieces]


@given(budgets(), TURNS)
def test_what_is_given_never_adds_up_to_more_than_a_total_whatever_the_settings_were_before(
    budget: Budget, turns: list[Turn]
) -> None:
    waiting: list[Wish] = []
    at_work: list[AtWork] = []
    for number, turn in enumerate(turns):
        since = NOON + timedelta(seconds=number)
        waiting += [Wish(piece.machine, "A", since, (piece,)) for piece in turn.come]
        for position in turn.end:
            at_work = at_work[:position] + at_work[position + 1 :]
        budget = turn.settings or budget
        new = asked_for(waiting, at_work, budget)
        at_work += new
        waiting = [wish for wish in waiting if wish.name not in {one.piece.machine for one in new}]
        after = given_in(at_work)
        for place in {place for one in new for place in places_of(one.piece, ())}:
            total = budget.bandwidths.total(place[0])
            assert not total or after[place] <= total


@given(budgets(), st.lists(PIECES, max_size=8))
def test_with_settings_that_stay_as_they_are_a_bandwidth_makes_nobody_wait(budget: Budget, come: list[Piece]) -> None:
    waiting = [Wish(piece.machine, "A", NOON, (piece,)) for piece in come]
    slower = asked_for(waiting, [], budget)
    later = asked_for(waiting, slower, budget)
    freely = replace(budget, bandwidths=Bandwidths())
    assert fit(waiting, slower, budget, ()).fitting == fit(waiting, slower, freely, ()).fitting
    assert [one.piece for one in slower] == [one.piece for one in asked_for(waiting, [], freely)]
    assert [one.piece for one in later] == [one.piece for one in asked_for(waiting, slower, freely)]


@given(budgets(), PIECES)
def test_where_a_total_is_set_each_is_given_some_of_it(budget: Budget, piece: Piece) -> None:
    totals = [budget.bandwidths.total(kind) for kind, _ in places_of(piece, ())]
    assert (budget.given_to(piece) > 0) == any(totals)


def test_who_was_given_more_by_earlier_settings_makes_others_wait_and_they_are_told() -> None:
    at_work = [AtWork(Piece("old", "n1", "/b"), given=90)]
    waiting = [Wish("w", "A", NOON, (Piece("new", "n2", "/b"),))]
    answer = fit(waiting, at_work, Budget(overall=2, bandwidths=Bandwidths(overall=100)), ())
    assert answer.waiting == {"w": "90 of 100 MiB/s overall given"}


def test_a_node_that_is_down_is_asked_with_its_share_for_it_may_come_back() -> None:
    budget = Budget(overall=4, bandwidths=Bandwidths(overall=100))
    assert budget.given_to(Piece("m", "n1", "/b")) == 25


def test_the_leaf_says_what_it_was_given_from_the_asking_to_the_end() -> None:
    merges = Budget(overall=2, per_node=1, bandwidths=Bandwidths(overall=50, per_node=20))
    cluster = ControlledCluster({Mode.MERGE: merges})
    cluster.add_machine("a")
    cluster.add_leaves("a")
    cluster.turn()
    cluster.begin("a")
    cluster.end("a")
    cluster.turn()
    asked = cluster.leaf("a")
    assert (asked.mode, asked.bandwidth) == (Mode.MERGE, 20)
    assert any(line.endswith("snapshotted → merge, at most 20 MiB/s") for line in cluster.lines())
    cluster.begin("a")
    assert cluster.leaf("a").slowed(0) == 20
    cluster.end("a")
    cluster.turn()
    asked = cluster.leaf("a")
    assert (asked.mode, asked.bandwidth) == (Mode.RETAIN, 0), "retains have no limit of their own here"
