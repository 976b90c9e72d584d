"""The times a schedule asks for, also in nights in which the clock is changed: held against cron minute by minute."""

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pure.schedules import nights, schedules
from tests.pure.slow_cron import SlowCron
from vmkeep.contract.plan import Schedule
from vmkeep.contract.slots import newest_slot, slots

NIGHT = timedelta(hours=9)
SECONDS = st.sampled_from([0, 0, 1, 59])
ZURICH = ZoneInfo("Europe/Zurich")


def cron(text: str) -> Schedule:
    return Schedule(*text.split(), active=True)


def between(schedule: Schedule, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    return list(takewhile(lambda slot: slot <= until, slots(schedule, zone, after)))


@settings(deadline=None, max_examples=120)
@given(schedules(), nights(), st.builds(lambda minute, second: 60 * minute + second, st.integers(0, 540), SECONDS))
def test_the_slots_of_any_schedule_in_any_night_are_those_of_cron_minute_by_minute(
    schedule: Schedule, night: tuple[ZoneInfo, datetime], seconds: int
) -> None:
    zone, evening = night
    expected = SlowCron(schedule, zone).slots(evening, evening + NIGHT)
    assert between(schedule, zone, evening, evening + NIGHT) == expected
    now = evening + timedelta(seconds=seconds)
    assert between(schedule, zone, now, evening + NIGHT) == [slot for slot in expected if slot > now]
    come = [slot for slot in expected if slot <= now]
    newest = newest_slot(schedule, zone, now)
    assert newest == come[-1] if come else newest is None or newest <= evening


def told(text: str, after: str, hours: int) -> list[str]:
    start = datetime.fromisoformat(after).replace(tzinfo=UTC)
    found = between(cron(text), ZURICH, start, start + timedelta(hours=hours))
    return [f"{slot:%d %H:%M}" for slot in found]


@pytest.mark.parametrize(
    ("text", "after", "slots_in_utc"),
    [
        ("30 2 * * *", "2026-03-27T12:00", ["28 01:30", "29 01:00", "30 00:30"]),  # skipped: after the gap
        ("0,30 2 * * *", "2026-03-28T12:00", ["29 01:00", "30 00:00", "30 00:30"]),  # twice skipped: once
        ("0 2,3 * * *", "2026-03-28T12:00", ["29 01:00", "30 00:00", "30 01:00"]),  # as another one: once
        ("30 2 * * *", "2026-10-23T12:00", ["24 00:30", "25 00:30", "26 01:30"]),  # twice: the first time
        ("15 * * 10 SUN", "2026-10-24T23:30", ["25 00:15", "25 01:15", "25 02:15"]),  # hourly: every hour there is
        ("0 * * * *", "2026-10-25T00:10", ["25 01:00", "25 02:00"]),  # asked within the hour that comes again
        ("0 3 * * *", "2026-03-28T12:00", ["29 01:00", "30 01:00"]),  # 3 o'clock, whatever it is in UTC
    ],
)
def test_nights_of_a_changed_clock(text: str, after: str, slots_in_utc: list[str]) -> None:
    assert told(text, after, 90)[: len(slots_in_utc)] == slots_in_utc


def test_a_slot_has_come_at_its_minute_and_not_a_second_before() -> None:
    three = datetime(2026, 5, 10, 1, tzinfo=UTC)
    assert newest_slot(cron("0 3 * * *"), ZURICH, three) == three
    assert newest_slot(cron("0 3 * * *"), ZURICH, three - timedelta(seconds=1)) == three - timedelta(days=1)


@pytest.mark.parametrize(
    ("text", "newest"),
    [
        ("* * * * *", datetime(2026, 11, 21, 19, 30, tzinfo=UTC)),
        ("0 3 * * mon#1", datetime(2026, 11, 2, 2, 0, tzinfo=UTC)),
        ("0 3 L * *", datetime(2026, 10, 31, 2, 0, tzinfo=UTC)),
        ("0 3 29 2 *", datetime(2024, 2, 29, 2, 0, tzinfo=UTC)),
        ("0 3 29 2 */7", datetime(2004, 2, 29, 2, 0, tzinfo=UTC)),
    ],
)
def test_the_newest_slot_is_found_however_long_ago_it_was(text: str, newest: datetime) -> None:
    assert newest_slot(cron(text), ZURICH, datetime(2026, 11, 21, 19, 30, 59, tzinfo=UTC)) == newest
