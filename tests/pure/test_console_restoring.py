"""What a restore does next, for every way a leaf may stand and have stood."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.console.conflicts import read_conflicts
from vmkeep.console.deleting import may_delete
from vmkeep.console.following import Standstill
from vmkeep.console.restoring import Step, choose, choose_good, step_of, why_not_abort
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.modes import ROWS, Kind, Mode, may_move

OLD, NEW, LATER = "20260101T000000Z", "20260102T000000Z", "20260103T000000Z"
NOW = datetime(2026, 2, 1, tzinfo=UTC)


def leaf(mode: str, rv: int = 0, timestamp: str = NEW, original: str = "") -> Leaf:
    read = Mode.read(mode)
    at_work = read is not None and not ROWS[read].state_is_time and not rv
    state = "0" if at_work else LATER
    return Leaf("dn", "web", timestamp, mode, state, return_value=rv, wishes=Wishes(original=original))


@pytest.mark.parametrize(
    ("now", "step"),
    [
        (leaf("finished"), Step.BEGIN),
        (leaf("finished", 100), Step.ENDED),
        (leaf("unretainSmallFiles"), Step.WAIT),
        (leaf("UNRETAINEDSMALLFILES"), Step.DECIDE),
        (leaf("unretainingSmallFiles", 37), Step.BEGIN),
        (leaf("unretainingLargeFiles", 38), Step.DECIDE),
        (leaf("unretainedLargeFiles", 29), Step.DECIDE),
        (leaf("restoring", 21), Step.FAILED),
        (leaf("restoring"), Step.WAIT),
        (leaf("retaining"), Step.ENDED),
        (leaf("teleport"), Step.ENDED),
        (None, Step.ENDED),
    ],
)
def test_a_leaf_found_is_taken_up_where_it_stands(now: Leaf | None, step: Step) -> None:
    assert step_of(now, None) is step


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (leaf("unretainingSmallFiles"), leaf("unretainingSmallFiles", 37), Step.FAILED),
        (leaf("unretainingLargeFiles"), leaf("unretainingLargeFiles", 38), Step.FAILED),
        (leaf("restoring"), leaf("finished"), Step.RESTORED),
        (leaf("restored"), leaf("finished"), Step.RESTORED),
        (leaf("restoring", 21), leaf("finished"), Step.ENDED),
        (leaf("unretainLargeFiles"), leaf("finished"), Step.ENDED),
        (leaf("unretainedLargeFiles"), leaf("finished"), Step.ENDED),
        (leaf("unretainedLargeFiles"), replace(leaf("finished"), execution_times=("restore: 2.0",)), Step.RESTORED),
        (leaf("restoring"), None, Step.ENDED),
        (leaf("restoring", original="db"), None, Step.RESTORED),
        (leaf("restoring", 21, original="db"), None, Step.ENDED),
        (leaf("unretainedSmallFiles", original="db"), None, Step.ENDED),
    ],
)
def test_what_a_change_means_depends_on_what_was_before(before: Leaf, now: Leaf | None, step: Step) -> None:
    assert step_of(now, before) is step


@pytest.mark.parametrize("at", [None, "latest"])
def test_the_newest_good_backup_is_chosen_whatever_failed_since(at: str | None) -> None:
    leaves = [leaf("finished", timestamp=OLD), leaf("finished"), leaf("merging", 11, LATER)]
    assert choose("web", leaves, at).timestamp == NEW


def test_a_restore_under_way_comes_before_newer_backups() -> None:
    assert choose("web", [leaf("finished"), leaf("unretainedSmallFiles", timestamp=OLD)], None).timestamp == OLD


def test_a_set_of_another_machine_is_no_backup_of_this_one() -> None:
    with pytest.raises(Refused, match="there is no good backup"):
        choose_good("web", [leaf("finished", original="db")], None)


@pytest.mark.parametrize(
    ("leaves", "at", "said"),
    [
        ([], None, "it has no leaf at all: .*rebuild-catalogue"),
        ([leaf("merging", 11)], None, f"the newest leaf {NEW} stands at merging with 11"),
        ([leaf("finished")], OLD, f"the backup {OLD} is not there; good ones: {NEW}"),
        ([leaf("finished"), leaf("finished", 100, OLD)], OLD, r"is no good backup \(finished, 100\)"),
        ([leaf("finished"), leaf("snapshotting", timestamp=LATER)], None, rf"{LATER} is at work \(snapshotting\)"),
        ([leaf("finished"), leaf("restoring", timestamp=OLD)], NEW, f"a restore of {OLD} is under way"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_what_there_is(leaves: list[Leaf], at: str | None, said: str) -> None:
    with pytest.raises(Refused, match=said):
        choose("web", leaves, at)


@pytest.mark.parametrize("mode", [mode for mode in Mode if leaf(mode).is_in_restore])
@pytest.mark.parametrize("rv", [0, 21])
def test_backing_out_is_offered_only_where_the_protocol_has_the_move_and_nobody_is_at_work(mode: Mode, rv: int) -> None:
    now = leaf(mode, rv)
    if why_not_abort(now) is None:
        assert may_move(mode, Mode.FINISHED)
        assert not now.is_at_work
    else:
        assert now.is_at_work or ROWS[mode].kind is Kind.IMPERATIVE or mode is Mode.RESTORED


@pytest.mark.parametrize(
    ("leaves", "why"),
    [
        ([leaf("finished")], "the last good backup"),
        ([leaf("finished"), leaf("merging", 11, LATER)], "the last good backup"),
        ([leaf("merging", 11), leaf("finished", timestamp=OLD)], "may still need its files"),
        ([leaf("restoring", 21)], "a restore uses it"),
        ([leaf("snapshotted")], "it is at work"),
        ([leaf("teleport")], "another tool"),
    ],
)
def test_what_is_needed_is_not_deleted(leaves: list[Leaf], why: str) -> None:
    with pytest.raises(Refused, match=why):
        may_delete("web", leaves, NEW, NOW, last=False)


@pytest.mark.parametrize(
    "leaves",
    [
        [leaf("finished"), leaf("finished", timestamp=OLD)],
        [leaf("retaining", 8)],
        [leaf("deleting", 13)],
        [leaf("delete")],
        [leaf("deleted")],
        [leaf("merging", 11), leaf("finished", timestamp=LATER)],
    ],
)
def test_what_nobody_needs_may_be_deleted(leaves: list[Leaf]) -> None:
    assert may_delete("web", leaves, NEW, NOW, last=False) is leaves[0]


@pytest.mark.parametrize("mode", ["delete", "deleting", "deleted"])
def test_while_another_backup_is_being_deleted_one_may_be_restored(mode: str) -> None:
    leaves = [leaf(mode, timestamp=OLD), leaf("finished")]
    assert choose("web", leaves, None) is leaves[1]


def test_what_is_held_is_not_deleted_not_even_as_the_last_and_until_the_hold_is_over() -> None:
    held = [replace(leaf("finished"), hold="20260201T000001Z the audit"), leaf("finished", timestamp=OLD)]
    why = f"it is held until 20260201T000001Z: the audit; `vmkeep release web {NEW}` first"
    with pytest.raises(Refused, match=why):
        may_delete("web", held, NEW, NOW, last=True)
    assert may_delete("web", held, NEW, NOW + timedelta(seconds=1), last=False) is held[0]


@pytest.mark.parametrize("text", ["[", "{}", '[{"what": "vda"}]', '["x"]'])
def test_conflicts_that_are_not_as_agreed_are_none_rather_than_no_conflict(text: str) -> None:
    assert read_conflicts(text) is None


def test_a_standstill_is_told_once_for_each_way_a_leaf_stands() -> None:
    now = 0.0
    standstill = Standstill(lambda: now)
    assert not standstill.is_due(leaf("restore"), 5)
    now = 5.0
    assert standstill.is_due(leaf("restore"), 5)
    assert not standstill.is_due(leaf("restore"), 5)
    assert not standstill.is_due(leaf("restored"), 5)
    now = 10.0
    assert standstill.is_due(leaf("restored"), 5)
