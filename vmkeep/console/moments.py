"""A time as somebody types it after an option: of the cluster's clock, with an offset of its own, or a leaf's name."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import typer

from vmkeep.contract.timestamps import from_timestamp, is_timestamp

_YEARS = range(1990, 2200)


def moment_of(option: str, text: str, zone: ZoneInfo) -> datetime:
    """The instant, in UTC; what is no time is wrong usage."""
    if is_timestamp(text):
        moment = from_timestamp(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(f"{option} {text}: a time is needed, such as 2026-12-31T03:00") from None
    if moment.year not in _YEARS:
        raise typer.BadParameter(f"{option} {text}: a year from {_YEARS[0]} to {_YEARS[-1]} is needed")
    return moment.replace(tzinfo=moment.tzinfo or zone).astimezone(UTC)
