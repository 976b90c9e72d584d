"""Which backups stay: held against a model that asks of each backup alone, and against pruning after every backup."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.slow_retention import is_kept
from vmkeep.contract.errors import Refused
from vmkeep.contract.plan import Source, policy_of
from vmkeep.contract.retention import Backup, Hold, Policy, Verdict, judge, read_hold, read_policy

ZURICH = ZoneInfo("Europe/Zurich")
START = datetime(2025, 12, 20, 23, 30, tzinfo=UTC)  # both sides of midnight, of a year, and of a changed clock
NOW = datetime(2027, 6, 1, tzinfo=UTC)

POLICIES = st.builds(
    Policy,
    last=st.integers(0, 4),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 4),
    monthly=st.integers(0, 4),
    yearly=st.integers(0, 2),
    floor=st.integers(1, 3),
)
GAPS = st.sampled_from([30, 60, 300, 1440, 1440, 1440, 4320, 20000, 60000])
TIMES = st.lists(GAPS, min_size=1, max_size=25).map(
    lambda gaps: [START + timedelta(minutes=sum(gaps[: number + 1])) for number in range(len(gaps))]
)
KINDS = st.sampled_from(["", "", "", "", "failed with return value 47", "in flight", "not verified"])


def staying(verdicts: tuple[Verdict, ...]) -> set[datetime]:
    return {verdict.backup.planned for verdict in verdicts if verdict.stays}


def is_to_stay(one: Backup, backups: list[Backup], policy: Policy) -> bool:
    good = [backup.planned for backup in backups if not backup.why_no_good]
    if one.why_no_good or one.is_being_restored or (one.hold and (one.hold.until is None or one.hold.until > NOW)):
        return True
    return is_kept(one.planned, good, policy, ZURICH)


@settings(deadline=None, max_examples=120)
@given(st.data(), TIMES, POLICIES)
def test_what_stays_is_what_each_rule_says_of_each_backup_alone(
    data: st.DataObject, times: list[datetime], policy: Policy
) -> None:
    holds = st.none() | st.none() | st.builds(Hold, st.just("audit"), st.none() | st.just(NOW + timedelta(days=1)))
    expired = st.just(Hold("over", NOW - timedelta(days=1)))
    backups = [
        Backup(time, data.draw(KINDS), data.draw(holds | expired), data.draw(st.sampled_from([False, False, True])))
        for time in times
    ]
    found = judge(backups, policy, NOW, ZURICH)
    assert [verdict.backup.planned for verdict in found] == sorted(times, reverse=True)
    assert staying(found) == {one.planned for one in backups if is_to_stay(one, backups, policy)}
    assert all(verdict.reasons for verdict in found)


@settings(deadline=None, max_examples=80)
@given(TIMES, POLICIES)
def test_pruned_after_every_backup_or_only_at_the_end_the_same_ones_are_left(
    times: list[datetime], policy: Policy
) -> None:
    left: set[datetime] = set()
    for time in times:
        left = staying(judge(map(Backup, left | {time}), policy, time, ZURICH))
    assert left == staying(judge(map(Backup, times), policy, NOW, ZURICH))


@settings(deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=30), POLICIES)
def test_failed_and_unverified_backups_neither_go_nor_push_a_good_one_out(kinds: list[str], policy: Policy) -> None:
    backups = [Backup(START + timedelta(days=number), kind) for number, kind in enumerate(kinds)]
    good = [backup for backup in backups if not backup.why_no_good]
    found = staying(judge(backups, policy, NOW, ZURICH))
    assert found >= {backup.planned for backup in backups if backup.why_no_good}
    assert found >= {backup.planned for backup in good[-policy.floor :]}
    assert found & {one.planned for one in good} == staying(judge(good, policy, NOW, ZURICH))


@settings(deadline=None)
@given(TIMES, POLICIES, st.sampled_from(["", "in flight"]))
def test_where_the_newest_lies_in_the_future_nothing_goes(times: list[datetime], policy: Policy, kind: str) -> None:
    future = Backup(NOW + timedelta(seconds=1), kind)
    found = judge([*map(Backup, times), future], policy, NOW, ZURICH)
    assert all(verdict.stays and "lies in the future" in verdict.reasons[0] for verdict in found)


def test_two_backups_of_one_local_day_are_one_day_whatever_day_it_is_in_utc() -> None:
    late, early = datetime(2026, 7, 1, 22, 30, tzinfo=UTC), datetime(2026, 7, 2, 3, tzinfo=UTC)
    policy = Policy(last=0, daily=5)
    assert staying(judge([Backup(late), Backup(early)], policy, NOW, ZURICH)) == {early}
    assert staying(judge([Backup(late), Backup(early)], policy, NOW, ZoneInfo("UTC"))) == {late, early}


def test_a_backup_at_the_beginning_of_time_is_one_like_any_other() -> None:
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(2026, 7, 2, 3, tzinfo=UTC)
    policy = Policy(last=0, daily=1)
    assert staying(judge([Backup(first), Backup(last)], policy, NOW, ZoneInfo("America/New_York"))) == {last}


def test_every_reason_is_said_and_an_expired_hold_holds_nothing() -> None:
    days = [datetime(2026, 5, number, 3, tzinfo=UTC) for number in range(1, 6)]
    held = Backup(days[0], hold=read_hold("20280101T000000Z the audit"))
    over = Backup(days[1], hold=read_hold("20270101T000000Z the move"))
    failed = Backup(days[2], "failed with return value 47")
    found = judge([held, over, failed, *map(Backup, days[3:])], Policy(last=1, daily=2), NOW, ZURICH)
    assert [(verdict.stays, verdict.reasons) for verdict in found] == [
        (True, ("last 1 of 1", "daily 1 of 2", "the newest good one always stays")),
        (True, ("daily 2 of 2",)),
        (True, ("failed with return value 47: only good backups count, and only good ones go",)),
        (False, ("good, and no rule keeps it",)),
        (True, ("held until 20280101T000000Z: the audit",)),
    ]


@pytest.mark.parametrize("text", ["forever", "2028 the audit", "20281301T000000Z x", "", "until further notice"])
def test_a_hold_that_names_no_time_holds_until_it_is_taken_back(text: str) -> None:
    assert read_hold(text) == Hold(text)
    [verdict, _] = reversed(judge([Backup(START, hold=read_hold(text)), Backup(NOW)], Policy(), NOW, ZURICH))
    assert verdict.stays


def test_a_policy_names_its_rules_and_keeps_by_no_other() -> None:
    assert read_policy("weekly=8 daily=14") == Policy(last=0, daily=14, weekly=8)
    assert read_policy("last=3 floor=2") == Policy(last=3, floor=2)


@pytest.mark.parametrize(
    "text", ["", "last", "last=", "last=-1", "last=x", "hourly=3", "last=1 last=2", "last=١", "last=99999", "floor=0"]
)
def test_a_policy_that_cannot_be_read_is_refused_and_names_the_machine_and_the_entry(text: str) -> None:
    own, cluster = Source("machine", "ou=x", {"vmkeepKeep": [text]}), Source("cluster", "y", {"vmkeepKeep": ["last=1"]})
    with pytest.raises(Refused) as caught:
        policy_of("web", [own, cluster])
    assert caught.value.sentence.startswith(f"web: vmkeepKeep is {text!r} in ou=x: ")
    assert int(caught.value.code) == 105


def test_the_older_number_of_iterations_is_a_policy_and_vmkeep_keep_wins_over_it_wherever_it_stands() -> None:
    number = Source("machine", "x", {"sstBackupNumberOfIterations": ["4"]})
    richer = Source("cluster", "y", {"vmkeepKeep": ["daily=7"]})
    assert policy_of("web", [number]) == Policy(last=4)
    assert policy_of("web", [number, richer]) == Policy(last=0, daily=7)
    assert policy_of("web", []) == Policy(last=1)
    unreadable = Source("machine", "x", {"sstBackupNumberOfIterations": ["many"]})
    with pytest.raises(Refused):
        policy_of("web", [unreadable])


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_policy_or_is_refused(text: str) -> None:
    try:
        policy = read_policy(text)
    except ValueError:
        return
    assert policy.floor >= 1


def test_the_years_are_left_in_full_by_a_policy_of_every_kind() -> None:
    nights = [datetime(2024, 1, 1, 3, tzinfo=UTC) + timedelta(days=number) for number in range(1000)]
    found = sorted(staying(judge(map(Backup, nights), Policy(7, 14, 8, 12, 5), NOW, ZURICH)), reverse=True)
    # Two weeks of days, five more Sundays, eleven more ends of months, one more end of a year.
    assert len(found) == 14 + 5 + 11 + 1
    assert all(one > other for one, other in pairwise(found))
