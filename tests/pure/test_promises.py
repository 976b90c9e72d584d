"""Who has no good backup in the promised time, and whom no plan covers: told of every such machine, and of no other."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.leaf import Leaf, Wishes
from vmkeep.contract.machine import Machine
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Source, promise_of
from vmkeep.contract.promises import Lack, LackKind, lack
from vmkeep.contract.timestamps import to_timestamp

NOW = datetime(2026, 5, 10, 12, tzinfo=UTC)
NIGHTLY = {Attribute.CRON_MINUTE: ["0"], Attribute.CRON_HOUR: ["3"], Attribute.CRON_ACTIVE: ["TRUE"]}
PROMISE = {Attribute.PROMISE: ["26h"]}
MACHINE = Machine("dn", "web", "n1")
HOUR = timedelta(hours=1)


def leaf(age: timedelta, mode: str = "finished", return_value: int = 0) -> Leaf:
    timestamp = to_timestamp(NOW - age)
    return Leaf(f"ou={timestamp}", "web", timestamp, mode, timestamp, return_value=return_value)


def found(plan: dict[Attribute, list[str]], *leaves: Leaf) -> Lack | None:
    return lack(MACHINE, (Source("cluster", "ou=backup,cluster", plan),), leaves, NOW)


def sentence(plan: dict[Attribute, list[str]], *leaves: Leaf) -> str:
    lacked = found(plan, *leaves)
    assert lacked is not None
    return lacked.sentence


def test_a_promise_is_kept_until_the_newest_good_backup_is_older() -> None:
    assert found(NIGHTLY | PROMISE, leaf(26 * HOUR)) is None
    assert sentence(NIGHTLY | PROMISE, leaf(27 * HOUR)) == (
        "web: its newest good backup, 20260509T090000Z, is 27 h old, and ou=backup,cluster promises one within 26 h "
        "(vmkeepPromise)"
    )


def test_what_failed_or_is_at_work_or_of_another_machine_keeps_no_promise() -> None:
    of_another = replace(leaf(HOUR), wishes=Wishes(original="db"))
    for bad in (leaf(HOUR, return_value=47), leaf(HOUR, "retaining"), leaf(HOUR, "merging", 11), of_another):
        assert "no good backup" in sentence(PROMISE, bad)
        assert "is 30 h old" in sentence(PROMISE, leaf(30 * HOUR), bad)


def test_a_backup_that_is_being_restored_from_is_one() -> None:
    assert found(PROMISE | NIGHTLY, leaf(HOUR, "unretainingLargeFiles")) is None


def test_a_leaf_that_lies_ahead_of_the_clock_keeps_no_promise_and_is_named() -> None:
    told = sentence(PROMISE, leaf(-HOUR))
    assert "web: it has no good backup (20260510T130000Z lies ahead of the clock and does not count)" in told
    assert found(PROMISE | NIGHTLY, leaf(timedelta(seconds=-100))) is None, "clocks differ by seconds"


def test_a_machine_left_out_on_purpose_lacks_nothing_whatever_is_promised() -> None:
    assert found(PROMISE | {Attribute.EXCLUDE: ["TRUE"]}) is None


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({}, "no plan sets sstCronMinute and sstCronHour; looked in ou=backup,cluster"),
        (NIGHTLY | {Attribute.CRON_ACTIVE: ["FALSE"]}, "sstCronActive is FALSE in ou=backup,cluster"),
        (NIGHTLY | {Attribute.CRON_HOUR: ["25"]}, "sstCronHour is '25' in ou=backup,cluster: it is not a cron field"),
    ],
)
def test_a_machine_without_a_schedule_or_a_promise_is_covered_by_no_plan(
    plan: dict[Attribute, list[str]], why: str
) -> None:
    lacked = found(plan, leaf(HOUR))
    assert lacked is not None
    assert lacked.kind is LackKind.UNCOVERED
    assert f"web: no plan covers it: {why}" in lacked.sentence


def test_a_promise_watches_over_a_machine_that_is_backed_up_by_hand() -> None:
    assert found(PROMISE, leaf(HOUR)) is None
    assert "; no plan sets sstCronMinute" in sentence(PROMISE, leaf(30 * HOUR))


@pytest.mark.parametrize("text", ["", "0", "soon", "26 hours", "-1h", "1.5h", "h"])
def test_a_promise_that_cannot_be_read_is_told_with_where_it_stands(text: str) -> None:
    lacked = found(NIGHTLY | {Attribute.PROMISE: [text]}, leaf(HOUR))
    assert lacked is not None
    assert lacked.kind is LackKind.BROKEN
    assert f"vmkeepPromise is {text!r} in ou=backup,cluster: it must be a number of seconds" in lacked.sentence


@pytest.mark.parametrize(
    ("text", "hours"), [("7200", 2), ("90m", 1.5), ("26h", 26), ("26 H", 26), ("8d", 192), ("1w", 168), ("60s", 1 / 60)]
)
def test_a_promise_is_seconds_or_has_a_unit(text: str, hours: float) -> None:
    assert promise_of("web", (Source("machine", "dn", {Attribute.PROMISE: [text]}),)) == hours * HOUR


@given(st.lists(st.tuples(st.integers(-100, 100), st.booleans()), max_size=8), st.integers(1, 60))
def test_a_promise_is_broken_just_when_no_good_backup_is_as_young(backups: list[tuple[int, bool]], hours: int) -> None:
    """Against the definition, backup by backup."""
    leaves = [leaf(age * HOUR, return_value=0 if is_good else 47) for age, is_good in backups]
    is_kept = any(is_good and 0 <= age <= hours for age, is_good in backups)
    assert (found(NIGHTLY | {Attribute.PROMISE: [f"{hours}h"]}, *leaves) is None) is is_kept
