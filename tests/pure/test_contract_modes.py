"""The table of modes: what it promises about every walk a leaf may take."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.codes import ReturnValue, meaning_of
from vmkeep.contract.modes import ROWS, TABLE, Actor, Circle, Kind, Mode, Restart, asked, at_work, done, may_move, modes

BACKUP = (
    "initialize initialized snapshot snapshotting snapshotted merge merging merged retain retaining retained finished"
)
RESTORE = (
    "finished unretainSmallFiles unretainingSmallFiles unretainedSmallFiles unretainLargeFiles unretainingLargeFiles "
    "unretainedLargeFiles restore restoring restored finished"
)


@pytest.mark.parametrize("walk", [BACKUP, RESTORE, "finished delete deleting deleted"])
def test_the_table_allows_every_walk_of_the_protocol(walk: str) -> None:
    for before, after in itertools.pairwise(Mode(name) for name in walk.split()):
        assert may_move(before, after), (before, after)


def test_every_mode_has_one_row_and_every_row_follows_modes_of_the_table() -> None:
    assert [row.mode for row in TABLE] == list(Mode)
    assert all(before in ROWS for row in TABLE for before in row.follows)


def test_every_mode_can_be_reached_from_the_first() -> None:
    reached = {Mode.INITIALIZE}
    for _ in TABLE:
        reached |= {row.mode for row in TABLE if reached & set(row.follows)}
    assert reached == set(Mode)


def test_every_imperative_is_claimed_and_ended_by_the_agent_and_may_be_asked_for_again_after_a_failure() -> None:
    for mode in modes(kind=Kind.IMPERATIVE):
        assert asked(at_work(mode)) is mode
        assert ROWS[at_work(mode)].writer is ROWS[done(at_work(mode))].writer is Actor.AGENT
        assert may_move(at_work(mode), mode)


@given(st.sampled_from(Mode), st.sampled_from([asked, at_work, done]))
def test_a_mode_of_another_kind_has_no_neighbour_of_that_sort(mode: Mode, neighbour: object) -> None:
    wanted = {asked: Kind.AT_WORK, at_work: Kind.IMPERATIVE, done: Kind.AT_WORK}[neighbour]  # type: ignore[index]
    if ROWS[mode].kind is wanted:
        assert isinstance(neighbour(mode), Mode)  # type: ignore[operator]
    else:
        with pytest.raises(ValueError, match="is not"):
            neighbour(mode)  # type: ignore[operator]


@given(st.sampled_from(Mode), st.randoms(use_true_random=False))
def test_a_mode_is_read_whatever_its_case(mode: Mode, random: object) -> None:
    mixed = "".join(random.choice((c.upper(), c.lower())) for c in mode.value)  # type: ignore[attr-defined]
    assert Mode.read(mixed) is mode


@given(st.text())
def test_foreign_modes_are_none_and_never_an_error(text: str) -> None:
    found = Mode.read(text)
    assert found is None or found.value.casefold() == text.casefold()


def test_state_is_a_time_exactly_where_a_step_has_ended() -> None:
    zero = {row.mode for row in TABLE if not row.state_is_time}
    assert zero == {*modes(kind=Kind.IMPERATIVE), *modes(kind=Kind.AT_WORK)}


def test_only_work_is_resumed_after_a_restart() -> None:
    assert {row.kind for row in TABLE if row.restart is Restart.RESUME} == {Kind.AT_WORK}
    assert {row.circle for row in TABLE} == set(Circle)


@given(st.integers(min_value=-10, max_value=2000))
def test_every_return_value_has_words(number: int) -> None:
    assert meaning_of(number)


def test_return_values_are_distinct_and_14_is_nobodys() -> None:
    assert {int(value) for value in ReturnValue if value < 100} == set(range(49)) - {14}
    assert len({value.meaning for value in ReturnValue}) == len(ReturnValue)
