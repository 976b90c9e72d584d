"""Leaves, timestamps and names: what they mean, and that odd values never raise."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf, with_duration
from vmkeep.contract.machine import check_name, check_target
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Tree, escape_rdn
from vmkeep.contract.timestamps import from_timestamp, is_timestamp, to_timestamp
from vmkeep.directory.catalogue import leaf_of, unescape_rdn
from vmkeep.directory.port import Entry

MOMENTS = st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 30)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
OFFSETS = st.integers(min_value=-12, max_value=14).map(lambda hours: timezone(timedelta(hours=hours)))


def leaf(mode: str, state: str = "0", rv: int = 0, times: tuple[str, ...] = (), execution_date: int = 0) -> Leaf:
    return Leaf("ou=x", "web", "20260101T000000Z", mode, state, execution_date, rv, times)


@pytest.mark.parametrize(
    ("mode", "plan", "given_here", "limit"),
    [
        ("merging", 0, 0, 0),
        ("merging", 200, 0, 200),
        ("merging", 0, 25, 25),
        ("merging", 200, 25, 25),
        ("retaining", 10, 25, 10),
        ("retaining", 0, 10**17, 999_999_999),
        ("snapshotting", 0, 25, 0),
        ("unretainingLargeFiles", 40, 25, 40),
    ],
)
def test_merge_and_retain_go_by_the_lower_of_plan_and_leaf_and_nothing_else_does(
    mode: str, plan: int, given_here: int, limit: int
) -> None:
    assert replace(leaf(mode), bandwidth=given_here).slowed(plan) == limit


@pytest.mark.parametrize(("value", "bandwidth"), [("25", 25), ("0", 0), ("-3", 0), ("much", 0)])
def test_a_bandwidth_that_is_none_is_no_limit(value: str, bandwidth: int) -> None:
    named = {"ou": ("20260101T000000Z",), "objectClass": ("sstProvisioning",), "vmkeepBandwidth": (value,)}
    read = leaf_of(Entry(Tree("o=x").leaf("web", "20260101T000000Z"), named))
    assert read is not None
    assert read.bandwidth == bandwidth


@given(MOMENTS, OFFSETS)
def test_a_moment_is_written_in_utc_and_read_back(moment: datetime, zone: timezone) -> None:
    assert from_timestamp(to_timestamp(moment.astimezone(zone))) == moment


@given(MOMENTS, MOMENTS)
def test_timestamps_sort_as_the_moments_do(one: datetime, other: datetime) -> None:
    assert (to_timestamp(one) < to_timestamp(other)) == (one < other)


@given(st.text() | st.from_regex(r"\d{8}T\d{6}Z", fullmatch=True))
def test_text_is_a_timestamp_or_not_and_never_an_error(text: str) -> None:
    if is_timestamp(text):
        assert to_timestamp(from_timestamp(text)) == text


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        to_timestamp(datetime(2026, 1, 1))


@given(st.sampled_from([mode.value for mode in Mode]) | st.text(max_size=8), st.text(max_size=8), st.integers())
def test_a_leaf_is_at_most_one_of_asked_at_work_failed_and_good(mode: str, state: str, rv: int) -> None:
    one = leaf(mode, state, rv)
    answers = [one.is_asked(date(2026, 1, 1)), one.is_at_work, one.is_failed, one.is_good_backup]
    assert sum(answers) <= 1


def test_state_zero_and_a_day_that_has_come_ask_for_work() -> None:
    assert leaf("snapshot").is_asked(date(2026, 1, 1))
    assert not leaf("snapshot", "20260101T000000Z").is_asked(date(2026, 1, 1))
    assert not leaf("snapshotting").is_asked(date(2026, 1, 1))
    assert leaf("snapshot", execution_date=20260101).is_asked(date(2026, 1, 1))
    assert not leaf("snapshot", execution_date=20260102).is_asked(date(2026, 1, 1))


def test_return_value_0_alone_is_no_success() -> None:
    assert not leaf("retained").is_good_backup
    assert not leaf("finished", rv=1).is_good_backup
    assert leaf("FINISHED").is_good_backup


@given(st.lists(st.text(max_size=20)), st.floats(min_value=0, max_value=1e6))
def test_a_duration_written_among_odd_ones_is_read_back(others: list[str], seconds: float) -> None:
    times = with_duration(tuple(others), "downtime", seconds)
    assert leaf("finished", times=times).duration("downtime") == pytest.approx(seconds, abs=0.0006)
    assert with_duration(times, "downtime", seconds) == times


@given(st.text(max_size=100))
def test_a_name_that_is_allowed_is_one_harmless_path_part(name: str) -> None:
    try:
        check_name(name)
    except Refused as why:
        assert int(why.code) == 101
        return
    assert "/" not in name
    assert ".." not in name
    assert name.isascii()
    assert name.isprintable()
    assert name[0] not in ".-"


@pytest.mark.parametrize("name", ["../etc", "a/b", "", ".", "..", "-rf", "a b", "a\n", "ä", "a" * 65, "a\0"])
def test_names_that_could_be_a_path_an_option_or_two_lines_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="not allowed"):
        check_name(name)


@pytest.mark.parametrize("target", ["", "a", "VDA", "vda/..", "vda\n", "../x", "verylongtarget"])
def test_targets_that_are_not_libvirts_are_refused(target: str) -> None:
    with pytest.raises(Refused):
        check_target("web", target)


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text))
def test_any_name_survives_being_written_into_a_dn(name: str) -> None:
    assert unescape_rdn(escape_rdn(name)) == name


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
    MOMENTS.map(to_timestamp),
)
def test_a_leaf_is_recognised_by_its_dn_whatever_the_machine_is_called(name: str, timestamp: str) -> None:
    dn = Tree("o=stepping-stone,c=ch").leaf(name, timestamp)
    found = leaf_of(Entry(dn, {"objectClass": ("sstProvisioning",), "ou": (timestamp,)}))
    assert found is not None
    assert (found.machine, found.timestamp) == (name, timestamp)
