"""Times as the directory writes them: UTC, to the second, `YYYYMMDDThhmmssZ`."""

import re
from datetime import UTC, datetime

_FORM = "%Y%m%dT%H%M%SZ"
_SHAPE = re.compile(r"\d{8}T\d{6}Z")


def to_timestamp(moment: datetime) -> str:
    """The directory's form of a moment; refuses one without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone cannot be written to the directory")
    return moment.astimezone(UTC).strftime(_FORM)


def from_timestamp(text: str) -> datetime:
    """The moment a timestamp names; ValueError where it is none."""
    if not _SHAPE.fullmatch(text):
        raise ValueError(f"{text!r} is not a time of the form 20260131T235959Z")
    return datetime.strptime(text, _FORM).replace(tzinfo=UTC)


def is_timestamp(text: str) -> bool:
    """Whether text is a valid timestamp; leaves of older tools with other names are passed over."""
    try:
        from_timestamp(text)
    except ValueError:
        return False
    return True
