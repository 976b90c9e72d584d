"""Which slot of a machine is due, and why there is none: newest only, never twice, whatever the clock does."""

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.schedules import nights, schedules
from vmkeep.contract.machine import Machine
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Schedule, Source
from vmkeep.contract.slots import newest_slot, slots
from vmkeep.contract.timetable import AHEAD, Why, due_slot, last_that_counts, left_out, timetable

UTC_ZONE = ZoneInfo("UTC")
NIGHTLY = Schedule("0", "3", "*", "*", "*", active=True)
NOON = datetime(2026, 5, 10, 12, tzinfo=UTC)
DAILY = {Attribute.CRON_MINUTE: ["0"], Attribute.CRON_HOUR: ["3"], Attribute.CRON_ACTIVE: ["TRUE"]}


def day(number: int, hour: int = 3) -> datetime:
    return datetime(2026, 5, number, hour, tzinfo=UTC)


def due(leaves: list[datetime], now: datetime = NOON) -> datetime | None:
    return due_slot(newest_slot(NIGHTLY, UTC_ZONE, now), last_that_counts(leaves, now))


def test_what_was_missed_is_caught_up_once_and_newest_only() -> None:
    assert due([day(6)]) == day(10)
    assert left_out(NIGHTLY, UTC_ZONE, day(6), day(10)) == 3
    assert due([day(6), day(10)]) is None


def test_a_machine_without_any_leaf_is_due() -> None:
    assert due([]) == day(10)


def test_a_backup_that_somebody_made_since_counts_as_well_as_the_slots_own() -> None:
    assert due([day(9), day(10, hour=4)]) is None
    assert due([day(9), day(10, hour=2)]) == day(10)


def test_a_slot_is_due_at_its_minute_and_not_before() -> None:
    assert due([day(9)], day(10) - timedelta(seconds=1)) is None
    assert due([day(9)], day(10)) == day(10)


def test_a_clock_set_back_by_up_to_a_day_starts_nothing_even_where_older_leaves_are_gone() -> None:
    assert due([day(10)], day(10) - timedelta(hours=1)) is None
    assert due([day(10)], day(10) - AHEAD) is None


def test_a_leaf_of_a_clock_gone_wrong_does_not_end_a_machines_backups() -> None:
    assert due([day(9), datetime(2099, 1, 1, tzinfo=UTC)]) == day(10)
    assert due([day(9), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)]) == day(10)


@settings(deadline=None, max_examples=50)
@given(schedules(), nights(), st.lists(st.integers(-3600, 4 * 3600), min_size=1, max_size=8))
def test_however_the_clock_jumps_no_slot_is_started_twice_and_each_is_the_newest_that_came(
    schedule: Schedule, night: tuple[ZoneInfo, datetime], steps: list[int]
) -> None:
    zone, now = night
    leaves: list[datetime] = []
    for step in steps:
        now += timedelta(seconds=step)
        came = newest_slot(schedule, zone, now)
        slot = due_slot(came, last_that_counts(leaves, now))
        if slot:
            assert slot == came
            assert slot not in leaves
            leaves = [slot]  # the older ones may go at any time
        assert came is None or leaves[-1] >= came


@settings(deadline=None, max_examples=50)
@given(schedules(), nights(), st.integers(1, 8 * 60))
def test_what_is_left_out_is_what_lies_between_the_last_leaf_and_the_slot(
    schedule: Schedule, night: tuple[ZoneInfo, datetime], minutes: int
) -> None:
    zone, last = night
    now = last + timedelta(minutes=minutes)
    come = list(takewhile(lambda slot: slot <= now, slots(schedule, zone, last)))
    slot = due_slot(newest_slot(schedule, zone, now), last)
    assert slot == (come[-1] if come else None)
    assert slot is None or left_out(schedule, zone, last, slot) == len(come) - 1


def machine(name: str = "web", node: str | None = "n1") -> Machine:
    return Machine(f"sstVirtualMachine={name}", name, node)


@pytest.mark.parametrize(
    ("one", "own", "cluster", "why", "said"),
    [
        (machine(), {Attribute.EXCLUDE: ["TRUE"]}, DAILY, Why.LEFT_OUT, "sstBackupExcludeFromBackup is TRUE in ou=own"),
        (
            machine(),
            {},
            {Attribute.CRON_HOUR: ["3"]},
            Why.NO_SCHEDULE,
            "no plan sets sstCronMinute; looked in ou=own, ou=",
        ),
        (machine(), {Attribute.CRON_ACTIVE: ["FALSE"]}, DAILY, Why.NOT_ACTIVE, "sstCronActive is FALSE in ou=own"),
        (
            machine(),
            {},
            {name: DAILY[name] for name in (Attribute.CRON_MINUTE, Attribute.CRON_HOUR)},
            Why.NOT_ACTIVE,
            "no plan sets sstCronActive to TRUE",
        ),
        (machine(), {Attribute.CRON_HOUR: ["25"]}, DAILY, Why.REFUSED, "web: sstCronHour is '25' in ou=own"),
        (machine(node=None), {}, DAILY, Why.REFUSED, "web: the machine names no node"),
        (machine("b..d"), {}, DAILY, Why.REFUSED, "the machine name 'b..d' is not allowed"),
        (
            machine(),
            {Attribute.EXCLUDE: ["perhaps"]},
            DAILY,
            Why.REFUSED,
            "web: sstBackupExcludeFromBackup is 'perhaps'",
        ),
        (
            machine(),
            {Attribute.CRON_DAY: ["30"], Attribute.CRON_MONTH: ["feb"]},
            DAILY,
            Why.REFUSED,
            "web: no date fits sstCronDay 30, sstCronMonth feb and sstCronDayOfWeek *",
        ),
    ],
)
def test_a_machine_that_is_not_backed_up_is_told_with_the_reason(
    one: Machine, own: dict[str, list[str]], cluster: dict[str, list[str]], why: Why, said: str
) -> None:
    found = timetable(one, [Source("machine", "ou=own", own), Source("cluster", "ou=cluster", cluster)])
    assert (found.schedule, found.why) == (None, why)
    assert found.sentence.startswith(said)


def test_the_schedule_is_read_field_by_field_from_machine_and_cluster_whatever_else_the_plan_holds() -> None:
    own = {Attribute.CRON_HOUR: ["5"], Attribute.ITERATIONS: ["many"]}
    found = timetable(machine(), [Source("machine", "ou=own", own), Source("cluster", "ou=cluster", DAILY)])
    assert found.schedule == Schedule("0", "5", "*", "*", "*", active=True)
