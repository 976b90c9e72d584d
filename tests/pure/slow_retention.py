"""What a policy keeps, asked of each backup alone: slow, and plain to see. The quick one is held against it."""

from collections.abc import Collection
from datetime import datetime
from zoneinfo import ZoneInfo

from vmkeep.contract.retention import Policy

_FORMS = {"daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y"}


def is_kept(one: datetime, good: Collection[datetime], policy: Policy, zone: ZoneInfo) -> bool:
    """Whether a rule or the floor keeps one of these good backups."""
    by_rule = any(_is_kept_by(name, one, good, getattr(policy, name), zone) for name in ("last", *_FORMS))
    return by_rule or sum(other > one for other in good) < policy.floor


def _is_kept_by(name: str, one: datetime, good: Collection[datetime], number: int, zone: ZoneInfo) -> bool:
    """The definition: no later one in its period, and fewer later periods than the rule keeps."""

    def period(moment: datetime) -> object:
        return moment.astimezone(zone).strftime(_FORMS[name]) if name in _FORMS else moment

    periods = {period(other) for other in good if other > one}
    return period(one) not in periods and len(periods) < number
