"""Which machines are to be saved at one instant, in what order, and until when: what plans say, read leniently. Pure.

The controller goes by this. What cannot be read does not count here; the agent refuses the machine where it must.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Schedule, Source, source_of
from vmkeep.contract.slots import slots

CONSISTENT = "consistent"
INCONSISTENT = "inconsistent"
START_WAIT = 60  # seconds; long enough for the memory of a machine saved beside it
_INSTANT = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True)
class Grouping:
    """One machine's part in a group: `group` as its plan spells it, "" for none; its places in the two orders.

    `start_wait` is how many seconds it may be kept standing still so that others run on before it.
    """

    group: str = ""
    stop: int | None = None
    start: int | None = None
    start_wait: int = START_WAIT


def key_of_group(name: str) -> str:
    """A group's name as the directory compares it: without case, one blank for many."""
    return " ".join(name.split()).casefold()


def grouping_of(sources: Sequence[Source]) -> Grouping:
    """What the effective plan says."""
    stop, start = (value_of(one, sources) for one in (Attribute.SEQUENCE_STOP, Attribute.SEQUENCE_START))
    wait = place_in_order(value_of(Attribute.START_WAIT, sources))  # one whole number, too
    name = " ".join(value_of(Attribute.GROUP, sources).split())
    return Grouping(name, place_in_order(stop), place_in_order(start), START_WAIT if wait is None else wait)


def place_in_order(text: str) -> int | None:
    """A place in an order: one whole number. Older tools keep other things there; those do not count."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else None


def value_of(attribute: Attribute, sources: Sequence[Source]) -> str:
    """The value in effect as it stands, several joined by commas; "" where no plan sets it."""
    source, wanted = source_of(attribute, sources), attribute.casefold()
    if source is None:
        return ""
    return ",".join(next(values for name, values in source.attributes.items() if name.casefold() == wanted and values))


def window_end(
    window: str, schedule: Schedule | None, zone: ZoneInfo, planned: datetime, now: datetime
) -> datetime | None:
    """Until when the snapshot of a leaf is to be made: by `window` (vmkeepWindow), else its machine's next time.

    None where neither says, and of leaves ahead of the clock.
    """
    if planned > now:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,8}", window):
        return planned + timedelta(seconds=int(window))
    return next(slots(schedule, zone, planned), None) if schedule else None


def to_instant(moment: datetime) -> str:
    """An instant as a leaf holds it: UTC, to the microsecond that the clock gave."""
    return moment.astimezone(UTC).strftime(_INSTANT)


def from_instant(text: str) -> datetime | None:
    """The instant a leaf holds; None where it holds none that can be read."""
    try:
        return datetime.strptime(text, _INSTANT).replace(tzinfo=UTC)
    except ValueError:
        return None


def is_inconsistent(consistency: str) -> bool:
    """Whether a leaf says of its group that it is not one instant."""
    return consistency.startswith(INCONSISTENT)
