"""The times a schedule asks for: cron fields in the cluster's local time → instants in UTC, to the minute. Pure.

The library finds the times on the wall clock; what they are in a night in which the clock is changed is said here, as
Debian's cron has it. Fixed times: one that is skipped comes at the first minute after the gap, one that comes twice
runs the first time. Where minute or hour begin with `*`, whatever the clock shows counts.
"""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from vmkeep.contract.plan import Schedule

_MINUTE = timedelta(minutes=1)
# More than any zone sets its clock back: what it shows may come again so much later.
_OUTSIDE = timedelta(hours=3)


def slots(schedule: Schedule, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Every slot after an instant, oldest first; without end, unless the fields fit no date for 50 years."""
    last = after
    for slot in _in_order(schedule, zone, after - _OUTSIDE):
        if slot > last:
            yield slot
            last = slot


def newest_slot(schedule: Schedule, zone: ZoneInfo, now: datetime) -> datetime | None:
    """The last slot that has come by now; None where there was none for 50 years."""
    for wall in CronSim(schedule.expression, _shows(now - _OUTSIDE, zone), reverse=True):
        since = slots(schedule, zone, _instant(wall, zone, fold=0) - _OUTSIDE)
        come = deque(takewhile(lambda slot: slot <= now, since), maxlen=1)
        if come:
            return come.pop()
    return None


def _in_order(schedule: Schedule, zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    """Slots from about an instant on; some of them twice."""
    again: deque[datetime] = deque()  # those of an hour that comes twice, kept until their turn
    is_fixed = not schedule.minute.startswith("*") and not schedule.hour.startswith("*")
    for wall in CronSim(schedule.expression, start.astimezone(zone).replace(tzinfo=None)):
        first = _instant(wall, zone, fold=0)
        while again and again[0] <= first:
            yield again.popleft()
        if _shows(first, zone) == wall:
            yield first
            second = _instant(wall, zone, fold=1)
            if second != first and not is_fixed:
                again.append(second)
        elif is_fixed:
            yield _after_the_gap(wall, zone)
    yield from again


def _after_the_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    while _shows(instant := _instant(wall, zone, fold=0), zone) != wall:
        wall += _MINUTE
    return instant


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _shows(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)
