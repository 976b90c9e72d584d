"""What plans say of groups, orders and windows, and how instants are written."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.grouping import Grouping, from_instant, grouping_of, key_of_group, to_instant, window_end
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Schedule, Source

UTC_ZONE = ZoneInfo("UTC")
PLANNED = datetime(2026, 1, 1, 3, tzinfo=UTC)
NOW = PLANNED + timedelta(hours=2)
NIGHTLY = Schedule("0", "3", "*", "*", "*", active=True)


def source(origin: str, **values: str) -> Source:
    return Source(origin, f"ou={origin}", {Attribute[name]: [value] for name, value in values.items()})


def test_each_value_is_looked_up_by_itself() -> None:
    sources = (source("machine", SEQUENCE_STOP="2"), source("pool", GROUP=" Web  Shop ", SEQUENCE_STOP="1"))
    assert grouping_of(sources) == Grouping("Web Shop", 2, None)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "4c7a-uuid", "1,2", "9999999999"])
def test_what_is_no_whole_number_is_no_place_in_an_order(text: str) -> None:
    assert grouping_of((source("machine", SEQUENCE_STOP=text),)).stop is None


def test_groups_compare_as_the_directory_does() -> None:
    assert key_of_group("Web  Shop") == key_of_group(" web shop ")


@pytest.mark.parametrize(
    ("window", "schedule", "end"),
    [
        ("600", NIGHTLY, PLANNED + timedelta(minutes=10)),
        ("", NIGHTLY, PLANNED + timedelta(days=1)),
        ("soon", NIGHTLY, PLANNED + timedelta(days=1)),
        ("0", None, None),
        ("", None, None),
    ],
)
def test_a_window_ends_by_the_plan_or_with_the_next_time(
    window: str, schedule: Schedule | None, end: datetime | None
) -> None:
    assert window_end(window, schedule, UTC_ZONE, PLANNED, NOW) == end


def test_a_leaf_ahead_of_the_clock_has_no_window() -> None:
    far = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert window_end("600", NIGHTLY, UTC_ZONE, far, NOW) is None


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_an_instant_is_read_as_it_was_written(moment: datetime) -> None:
    assert from_instant(to_instant(moment)) == moment


@pytest.mark.parametrize("text", ["", "20260101T030000Z", "yesterday"])
def test_what_is_no_instant_is_none(text: str) -> None:
    assert from_instant(text) is None
