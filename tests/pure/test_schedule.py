"""The schedule over the directory's twin in memory: months with outages, changed clocks, machines that are left out."""

import random
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.pure.simulated_cluster import TREE, SimulatedCluster
from tests.pure.slow_cron import SlowCron
from vmkeep.contract.leaf import NOW
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Schedule
from vmkeep.contract.timestamps import from_timestamp, to_timestamp
from vmkeep.directory.catalogue import Report

START = datetime(2026, 5, 10, 2, 50, tzinfo=UTC)
NIGHTLY = "0 3 * * *"
MONTHS = [
    ("Africa/Casablanca", datetime(2026, 2, 13, tzinfo=UTC), 40, 1),  # both changes of the clock
    ("Europe/Zurich", datetime(2026, 10, 22, tzinfo=UTC), 9, 2),
    ("Europe/Zurich", datetime(2026, 3, 26, tzinfo=UTC), 9, 3),
]
PLANS = {"night": "30 2 * * *", "hourly": "10 * * * *", "office": "*/40 8-17 * * mon-fri", "weekly": "0 3 * * SUN,WED"}


@pytest.fixture
def cluster() -> SimulatedCluster:
    return SimulatedCluster("UTC", START)


def timestamps(cluster: SimulatedCluster, machine: str = "web") -> list[str]:
    return sorted(leaf.timestamp for leaf in cluster.catalogue.standing_leaves(machine))


@pytest.mark.parametrize(("zone", "start", "days", "seed"), MONTHS)
def test_in_a_month_with_outages_each_slot_ran_once_or_is_explained(
    zone: str, start: datetime, days: int, seed: int
) -> None:
    cluster, chance = SimulatedCluster(zone, start), random.Random(seed)
    cron = {name: SlowCron(Schedule(*text.split(), active=True), ZoneInfo(zone)) for name, text in PLANS.items()}
    slots = {name: one.slots(start, start + timedelta(days=days + 1)) for name, one in cron.items()}
    for name, text in PLANS.items():
        cluster.add_machine(name, text)
        cluster.catalogue.add_leaf(name, to_timestamp(start), to_timestamp(start))
        [leaf] = cluster.catalogue.leaves(name)
        cluster.catalogue.claim(leaf, Mode.FINISHED, Report(to_timestamp(start)))
    away_until = start
    while cluster.now < start + timedelta(days=days):
        cluster.now += timedelta(minutes=chance.choice([20, 30, 60]), seconds=chance.randint(0, 59))
        cluster.end_leaves(chance)
        if cluster.now < away_until:
            continue
        busy = cluster.busy()
        expected = {name for name in PLANS if name not in busy and _has_come(cluster, name, slots[name])}
        before = {name: len(cluster.added[name]) for name in PLANS}
        cluster.turn()
        assert {name for name in PLANS if len(cluster.added[name]) > before[name]} == expected, cluster.now
        if chance.random() < 0.01:
            away_until = cluster.now + timedelta(hours=chance.choice([1, 6, 30, 80]))
            cluster.start_controller()
    for name in PLANS:
        _check_that_all_is_explained(cluster, name, slots[name], start)


def _has_come(cluster: SimulatedCluster, name: str, slots: list[datetime]) -> bool:
    number = bisect_right(slots, cluster.now)
    newest = to_timestamp(slots[number - 1]) if number else None
    return newest is not None and newest not in [timestamp for timestamp, _, _ in cluster.added[name][-2:]]


def _check_that_all_is_explained(cluster: SimulatedCluster, name: str, slots: list[datetime], start: datetime) -> None:
    ran = [from_timestamp(timestamp) for timestamp, _, _ in cluster.added[name]]
    assert ran == sorted(set(ran))
    assert set(ran) <= set(slots)
    for last, slot, (_, added, said) in zip([start, *ran], ran, cluster.added[name], strict=False):
        missed = [one for one in slots if last < one < slot]
        assert (f"slots left out since {to_timestamp(last)}: {len(missed)}" in said) == bool(missed)
        assert ("after its time" in said) == (added - slot > timedelta(minutes=5))


@pytest.mark.parametrize("number", [2, 60])
def test_machines_of_one_slot_share_their_leafs_name_and_the_leaf_is_named_by_the_planned_time(
    cluster: SimulatedCluster, number: int
) -> None:
    names = [f"m{one}" for one in range(number)]
    for name in names:
        cluster.add_machine(name, NIGHTLY)
        cluster.catalogue.add_leaf(name, "20260509T040000Z", NOW)
        [leaf] = cluster.catalogue.leaves(name)
        cluster.catalogue.claim(leaf, Mode.FINISHED, Report(NOW))
    cluster.turn()
    assert not any(cluster.added.values())
    cluster.now = START + timedelta(minutes=10, seconds=42)
    cluster.turn()
    assert cluster.added == {name: [("20260510T030000Z", cluster.now, "")] for name in names}


def test_many_machines_start_in_parts_between_which_the_cycle_has_its_turn(cluster: SimulatedCluster) -> None:
    for number in range(5):
        cluster.add_machine(f"m{number}", NIGHTLY)
    cluster.scheduler.at_once = 2
    for started in (2, 4, 5):
        assert cluster.scheduler.turn() == 0.0
        assert len(list(cluster.catalogue.leaves())) == started
    assert cluster.scheduler.turn() == 60.0


def test_within_a_minute_plans_are_not_read_again_and_after_it_an_edit_counts(cluster: SimulatedCluster) -> None:
    cluster.add_machine("web", NIGHTLY, CRON_ACTIVE="FALSE")
    assert cluster.scheduler.turn() == 60.0
    cluster.catalogue.store.replace(TREE.machine_plan("web"), {Attribute.CRON_ACTIVE: ("TRUE",)})
    cluster.now += timedelta(seconds=40)
    assert cluster.scheduler.turn() == 20.0
    assert timestamps(cluster) == []
    cluster.now += timedelta(seconds=20)
    assert cluster.scheduler.turn() == 0.0
    assert timestamps(cluster) == ["20260509T030000Z"]


def test_a_slot_waits_for_the_leaf_in_flight_is_told_once_and_then_started(cluster: SimulatedCluster) -> None:
    cluster.add_machine("web", NIGHTLY)
    cluster.catalogue.add_leaf("web", "20260509T220000Z", NOW)
    for minutes in (12, 1, 1):
        cluster.now += timedelta(minutes=minutes)
        cluster.turn()
    assert timestamps(cluster) == ["20260509T220000Z"]
    assert [line for line in cluster.lines() if "waits" in line] == [
        "web: 20260510T030000Z is due and waits: the leaf 20260509T220000Z was in flight (initialize) and was taken on "
        "instead of a new one"
    ]
    [leaf] = cluster.catalogue.leaves("web")
    cluster.catalogue.claim(leaf, Mode.FINISHED, Report(NOW, 47))
    cluster.now += timedelta(minutes=1)
    cluster.turn()
    assert timestamps(cluster) == ["20260509T220000Z", "20260510T030000Z"]


def test_one_machine_that_cannot_be_planned_stops_nobody_and_is_told_once(cluster: SimulatedCluster) -> None:
    cluster.add_machine("web", NIGHTLY)
    cluster.add_machine("b..d", NIGHTLY)
    cluster.add_machine("odd", "0 25 * * *")
    cluster.add_machine("out", NIGHTLY, EXCLUDE="TRUE")
    cluster.add_machine("homeless", NIGHTLY, node=None)
    for _ in range(3):
        cluster.turn()
        cluster.now += timedelta(minutes=1)
    assert [name for name, leaves in cluster.added.items() if leaves] == ["web"]
    for said in (
        "1 machines have a schedule, 1 left out, 3 refused",
        "b..d: the machine name",
        "odd: sstCronHour is '25'",
    ):
        assert len([line for line in cluster.lines() if line.startswith(said)]) == 1
    assert len([line for line in cluster.lines() if "names no node" in line]) == 1


def test_a_leaf_that_is_deleted_does_not_make_its_slot_due_again_while_the_controller_runs(
    cluster: SimulatedCluster,
) -> None:
    cluster.add_machine("web", NIGHTLY)
    cluster.turn()
    cluster.now += timedelta(minutes=1)
    cluster.turn()
    [leaf] = cluster.catalogue.leaves("web")
    cluster.catalogue.claim(leaf, Mode.FINISHED, Report(NOW))
    for _ in range(2):
        cluster.now += timedelta(minutes=1)
        cluster.turn()
        cluster.catalogue.store.delete(leaf.dn)
    assert timestamps(cluster) == []


def test_a_leaf_that_another_controller_takes_back_before_it_began_leaves_its_slot_due(
    cluster: SimulatedCluster,
) -> None:
    cluster.add_machine("web", NIGHTLY)
    cluster.catalogue.add_leaf("web", "20260509T030000Z", to_timestamp(START))
    cluster.turn()
    assert cluster.lines() == ["1 machines have a schedule; `vmkeep plan` says when and why"]
    cluster.catalogue.store.delete(TREE.leaf("web", "20260509T030000Z"))
    cluster.now += timedelta(minutes=1)
    cluster.turn()
    assert timestamps(cluster) == ["20260509T030000Z"]


def test_a_clock_set_back_adds_nothing_and_is_told(cluster: SimulatedCluster) -> None:
    cluster.add_machine("web", NIGHTLY)
    cluster.now += timedelta(minutes=15)
    cluster.turn()
    [leaf] = cluster.catalogue.leaves("web")
    cluster.catalogue.claim(leaf, Mode.FINISHED, Report(NOW))
    for restarted in (False, True):
        if restarted:
            cluster.start_controller()
        cluster.now = START - timedelta(hours=20)
        for _ in range(3):
            cluster.turn()
            cluster.now += timedelta(minutes=1)
        assert timestamps(cluster) == ["20260510T030000Z"]
        told = [line for line in cluster.lines() if "ahead of the clock" in line]
        assert told == ["web: its newest leaf 20260510T030000Z lies ahead of the clock; no slot before it is started"]


def test_a_leaf_of_the_year_2099_is_told_and_ends_nobodys_backups(cluster: SimulatedCluster) -> None:
    cluster.add_machine("web", NIGHTLY)
    cluster.catalogue.add_leaf("web", "20990101T000000Z", NOW)
    [leaf] = cluster.catalogue.leaves("web")
    cluster.catalogue.claim(leaf, Mode.FINISHED, Report(NOW))
    cluster.turn()
    assert timestamps(cluster) == ["20260509T030000Z", "20990101T000000Z"]
    assert (
        "web: the leaf 20990101T000000Z lies more than a day ahead of the clock and does not count" in cluster.lines()
    )
