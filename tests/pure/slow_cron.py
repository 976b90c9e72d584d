"""Cron read minute by minute: slow, obvious, and without the library. What the quick one is held against."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from vmkeep.contract.plan import Schedule

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MINUTE = timedelta(minutes=1)


class SlowCron:
    """One schedule in one zone."""

    def __init__(self, schedule: Schedule, zone: ZoneInfo) -> None:
        self._zone = zone
        self._minutes = _values(schedule.minute, 0, 59)
        self._hours = _values(schedule.hour, 0, 23)
        self._days = _values(schedule.day, 1, 31)
        self._months = _values(schedule.month, 1, 12, MONTHS, 1)
        self._weekdays = {day % 7 for day in _values(schedule.day_of_week, 0, 7, DAYS)}
        self._both_days = schedule.day.startswith("*") or schedule.day_of_week.startswith("*")
        self._is_fixed = not schedule.minute.startswith("*") and not schedule.hour.startswith("*")

    def slots(self, after: datetime, until: datetime) -> list[datetime]:
        """Every whole minute in (after, until] that is one. `after` in UTC, at a whole minute."""
        found, before, instant = [], self._wall(after), after
        while (instant := instant + MINUTE) <= until:
            wall = self._wall(instant)
            is_second = instant.astimezone(self._zone).fold == 1
            hit = self._fits(wall) and not (self._is_fixed and is_second)
            skipped = before + MINUTE
            while self._is_fixed and skipped < wall:
                hit, skipped = hit or self._fits(skipped), skipped + MINUTE
            if hit:
                found.append(instant)
            before = wall
        return found

    def _wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None, fold=0)

    def _fits(self, wall: datetime) -> bool:
        if wall.minute not in self._minutes or wall.hour not in self._hours or wall.month not in self._months:
            return False
        day, weekday = wall.day in self._days, wall.isoweekday() % 7 in self._weekdays
        return (day and weekday) if self._both_days else (day or weekday)


def _values(text: str, low: int, high: int, names: tuple[str, ...] = (), first: int = 0) -> set[int]:
    def number(word: str) -> int:
        return names.index(word.upper()) + first if word.upper() in names else int(word)

    found: set[int] = set()
    for term in text.split(","):
        body, _, step = term.partition("/")
        start, _, end = body.partition("-")
        if body == "*":
            bottom, top = low, high
        elif end:
            bottom, top = number(start), number(end)
        else:
            bottom, top = number(start), high if step else number(start)
        found |= set(range(bottom, top + 1, int(step or 1)))
    return found
