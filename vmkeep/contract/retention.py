"""Which backups of a machine stay and which may go, and why: by a policy, above a floor, beside what is held. Pure.

Only good backups count, and only good backups go. Each rule keeps the newest backup of so many periods that have one:
a week in which nothing ran costs no old backup. Applied after every backup or once a year, the same ones are left.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from zoneinfo import ZoneInfo

from vmkeep.contract.timestamps import from_timestamp, is_timestamp, to_timestamp

_MOST = 9999
_FLOOR, _FLOOR_OF_ONE = "the newest {} good ones always stay", "the newest good one always stays"


@dataclass(frozen=True)
class Policy:
    """How many backups each rule keeps. The newest `floor` good ones stay whatever the rules say."""

    last: int = 1
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    floor: int = 1

    def __post_init__(self) -> None:
        """A floor of 0 would let the last good backup go."""
        numbers = [getattr(self, one.name) for one in fields(self)]
        if self.floor < 1 or not all(0 <= number <= _MOST for number in numbers):
            raise ValueError(f"each number must be from 0 to {_MOST}, and the floor 1 or more")


@dataclass(frozen=True)
class Hold:
    """Somebody's word that a backup stays. `until` None: until it is taken back."""

    reason: str
    until: datetime | None = None

    def is_on(self, now: datetime) -> bool:
        """Whether it has not run out."""
        return self.until is None or now < self.until


@dataclass(frozen=True)
class Backup:
    """One backup, by its planned time. `why_no_good`: failed, in flight, not verified; empty for a good one."""

    planned: datetime
    why_no_good: str = ""
    hold: Hold | None = None
    is_being_restored: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a backup stays, and every reason for it."""

    backup: Backup
    stays: bool
    reasons: tuple[str, ...]


def read_policy(text: str) -> Policy:
    """A policy as a plan says it: `last=7 daily=14 floor=2`, in any order; ValueError where it says none.

    A rule that is not named keeps nothing.
    """
    return Policy(**{"last": 0, **_numbers(text)})


def read_hold(text: str) -> Hold:
    """A hold as a leaf says it: `20270101T000000Z the audit`, or the reason alone. What cannot be read holds."""
    first, _, reason = text.strip().partition(" ")
    if is_timestamp(first):
        return Hold(reason.strip(), from_timestamp(first))
    return Hold(text.strip())


def hold_text(hold: Hold) -> str:
    """A hold as a leaf says it; what `read_hold` reads."""
    return f"{to_timestamp(hold.until)} {hold.reason}" if hold.until else hold.reason


def judge(backups: Iterable[Backup], policy: Policy, now: datetime, zone: ZoneInfo) -> tuple[Verdict, ...]:
    """A verdict on each backup, newest first. Days, weeks, months and years are those of the cluster's clock."""
    ordered = sorted(backups, key=lambda backup: backup.planned, reverse=True)
    if ordered and ordered[0].planned > now:
        why = f"the newest, {to_timestamp(ordered[0].planned)}, lies in the future: a clock is wrong"
        return tuple(Verdict(backup, True, (why,)) for backup in ordered)
    good = [backup for backup in ordered if not backup.why_no_good]
    kept = _kept(good, policy, zone)
    found = ((backup, (*_apart(backup, now), *kept.get(backup.planned, ()))) for backup in ordered)
    gone = "good, and no rule keeps it"
    return tuple(Verdict(backup, bool(reasons), reasons or (gone,)) for backup, reasons in found)


def _kept(good: Sequence[Backup], policy: Policy, zone: ZoneInfo) -> dict[datetime, list[str]]:
    """The reasons of the rules and of the floor, by planned time. `good` newest first."""
    kept: dict[datetime, list[str]] = {}
    for name, period in _PERIODS.items():
        periods = list(dict.fromkeys(period(_local(backup.planned, zone)) for backup in good))
        newest = {period(_local(backup.planned, zone)): backup for backup in reversed(good)}
        for number, one in enumerate(periods[: getattr(policy, name)], 1):
            kept.setdefault(newest[one].planned, []).append(f"{name} {number} of {getattr(policy, name)}")
    for backup in good[: policy.floor]:
        kept.setdefault(backup.planned, []).append(_FLOOR.format(policy.floor) if policy.floor > 1 else _FLOOR_OF_ONE)
    return kept


def _apart(backup: Backup, now: datetime) -> Iterable[str]:
    """What keeps a backup whatever the rules say."""
    if backup.why_no_good:
        yield f"{backup.why_no_good}: only good backups count, and only good ones go"
    if backup.is_being_restored:
        yield "a restore is using it"
    if backup.hold and backup.hold.is_on(now):
        until = f" until {to_timestamp(backup.hold.until)}" if backup.hold.until else ""
        yield f"held{until}: {backup.hold.reason or 'no reason given'}"


def _numbers(text: str) -> dict[str, int]:
    known = {one.name for one in fields(Policy)}
    words = [word.partition("=") for word in text.split()]
    names = [name for name, _, _ in words]
    if not names or set(names) - known or len(set(names)) < len(names):
        raise ValueError(f"the words are {', '.join(sorted(known))}, each once, as in last=7")
    return {name: _number(value) for name, _, value in words}


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST))):
        raise ValueError(f"{text!r} is no number from 0 to {_MOST}")
    return int(text)


def _local(moment: datetime, zone: ZoneInfo) -> datetime:
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return moment  # people name leaves, and the first day of year 1 is a name


def _week(moment: datetime) -> tuple[int, int]:
    year, week, _ = moment.isocalendar()
    return year, week


# `last` is a rule like the others: every backup is a period of its own.
_PERIODS: dict[str, Callable[[datetime], object]] = {
    "last": lambda moment: moment.timestamp(),
    "daily": lambda moment: moment.date(),
    "weekly": _week,
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: moment.year,
}
