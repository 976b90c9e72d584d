"""Backups that the plan keeps no longer go, and no others: a year of a machine, with all that goes wrong in one."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from controller.cycle import read_view
from controller.run import Fate, choose, start
from tests.pure.kept_machine import BOUNDS, TREE, KeptMachine, Record, expected
from vmkeep.contract.errors import TryLater
from vmkeep.contract.leaf import NOW
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.pruning import to_ask
from vmkeep.contract.retention import read_policy
from vmkeep.contract.timestamps import from_timestamp, to_timestamp
from vmkeep.directory.catalogue import Report
from vmkeep.directory.port import Claim
from vmkeep.directory.pruning import ask, judge_machine, read_surveyed

ZURICH = ZoneInfo("Europe/Zurich")
START = datetime(2026, 1, 1, 3, tzinfo=UTC)
DAY = timedelta(days=1)
POLICIES = ["last=1", "last=3 floor=2", "daily=5 weekly=3", "last=2 daily=7 weekly=4 monthly=6 yearly=2 floor=3"]


def nights(world: KeptMachine, number: int, name: str = "web") -> list[str]:
    """Good backups of so many nights, the last one just now."""
    planned = [world.now - DAY * (number - 1 - one) for one in range(number)]
    for one in planned:
        world.put(Record(one), name)
    return [to_timestamp(one) for one in planned]


def prune(world: KeptMachine) -> None:
    """Until nothing is left to do."""
    world.turn()
    world.delete_what_is_asked()
    world.turn()


@settings(deadline=None, max_examples=8, phases=[Phase.generate])  # a smaller seed tells no more
@given(st.integers(0, 2**32), st.sampled_from(POLICIES))
def test_through_a_year_of_failures_holds_restores_and_outages_what_is_left_is_what_the_policy_says(
    seed: int, text: str
) -> None:
    chance, policy = random.Random(seed), read_policy(text)
    world = KeptMachine(START, ZURICH, KEEP=text)
    records: list[Record] = []
    while world.now < START + 365 * DAY:
        world.now += chance.choice([DAY / 2, DAY, DAY, DAY, 3 * DAY, 12 * DAY])
        _live(world, records, chance)
        if chance.random() < 0.15:
            continue  # the controller is away
        if chance.random() < 0.15:
            world.start_controller()
        world.turn()
        if chance.random() < 0.1:
            world.start_controller()  # killed between asking and removing
        world.delete_what_is_asked()
        world.turn()
        before, records = records, expected(records, policy, world.now, ZURICH)
        assert world.left() == [to_timestamp(one.planned) for one in records], world.now
        assert _good(records) >= min(policy.floor, _good(before))


def _live(world: KeptMachine, records: list[Record], chance: random.Random) -> None:
    """What a day brings: uses end, holds come, a backup is made well or badly."""
    for record in records:
        if record.in_use:
            record.in_use = ""
            world.put(record)
    if records and chance.random() < 0.1:
        held = chance.choice(records)
        held.held_until = world.now + chance.choice([DAY, 30 * DAY, 400 * DAY])
        world.put(held)
    new = Record(world.now)
    if chance.random() < 0.25:
        new.failed = world.now
    records.append(new)
    world.put(new)
    good = [record for record in records[:-1] if record.is_good]
    if chance.random() < 0.05 and not new.failed:
        new.in_use = "snapshotting"
        world.put(new)
    elif chance.random() < 0.1 and good:
        used = chance.choice(good)
        used.in_use = chance.choice(["unretainedSmallFiles", "restoring"])
        world.put(used)


def _good(records: list[Record]) -> int:
    return sum(record.is_good for record in records)


@pytest.fixture
def world() -> KeptMachine:
    return KeptMachine(START, ZURICH, KEEP="last=2")


def test_a_good_backup_that_has_just_ended_has_its_machine_judged_at_once_and_others_not(world: KeptMachine) -> None:
    prune(world)
    first = nights(world, 3)
    world.add_machine("other")
    nights(world, 3, "other")
    world.cycle.ended_well.clear()
    world.now += timedelta(minutes=1)
    for leaf in list(world.catalogue.leaves("other")):
        world.catalogue.claim(leaf, Mode.FINISHED, Report(to_timestamp(world.now)))
    prune(world)
    assert world.left() == first[1:]
    assert len(world.left("other")) == 3, "nobody ended a backup of it, and the hour is not over"
    world.now += timedelta(hours=1)
    prune(world)
    assert len(world.left("other")) == 1, "its plan says nothing, so one is kept"


def test_a_machine_whose_plan_cannot_be_read_keeps_everything_is_told_once_and_holds_up_nobody(
    world: KeptMachine,
) -> None:
    world.plan("web", KEEP="last=few")
    world.add_machine("zoo", KEEP="last=1")
    kept, other = nights(world, 3), nights(world, 3, "zoo")
    prune(world)
    world.now += timedelta(hours=1)
    prune(world)
    assert world.left() == kept
    assert world.left("zoo") == other[-1:]
    [line] = [line for line in world.lines() if "no old backup" in line]
    assert line.startswith("web: no old backup of it goes: vmkeepKeep is 'last=few' in ou=backup,")
    assert world.pruner.metrics.not_pruned._value.get() == 1
    world.plan("web", KEEP="last=1")
    world.now += timedelta(hours=1)
    prune(world)
    assert world.left() == kept[-1:]
    assert world.pruner.metrics.not_pruned._value.get() == 0


def test_a_leaf_ahead_of_the_clock_keeps_everything_and_is_told(world: KeptMachine) -> None:
    kept = nights(world, 4)
    ahead = Record(world.now + DAY)
    world.put(ahead)
    prune(world)
    assert world.left() == [*kept, to_timestamp(ahead.planned)]
    assert [line for line in world.lines() if "lies in the future: a clock is wrong; delete that leaf" in line]


def test_a_set_that_another_machine_is_made_from_stays_until_that_is_over(world: KeptMachine) -> None:
    kept = nights(world, 3)
    world.add_machine("copy")
    world.catalogue.add_leaf("copy", kept[0], to_timestamp(world.now))
    copying = {Attribute.MODE: ("unretainedSmallFiles",), Attribute.RESTORE_FROM: ("WEB",)}
    world.catalogue.store.replace(TREE.leaf("copy", kept[0]), copying)
    prune(world)
    assert world.left() == kept
    world.catalogue.store.delete(TREE.leaf("copy", kept[0]))
    world.now += timedelta(hours=1)
    prune(world)
    assert world.left() == kept[1:]


def test_whoever_moves_a_leaf_after_it_was_judged_keeps_it(world: KeptMachine) -> None:
    kept = nights(world, 3)
    world.cycle.turn()
    surveyed = read_surveyed(world.catalogue, "web")
    assert surveyed is not None
    [going] = to_ask(judge_machine(world.catalogue, surveyed, {}, world.now, ZURICH))
    moved = {Attribute.MODE: (Mode.UNRETAIN_SMALL_FILES,), Attribute.STATE: (NOW,)}
    world.catalogue.store.replace(going.leaf.dn, moved)
    assert ask(world.catalogue, going) is Claim.LOST
    prune(world)
    assert world.left() == kept


def test_many_machines_are_judged_in_parts_between_which_the_cycle_has_its_turn(world: KeptMachine) -> None:
    for number in range(4):
        world.add_machine(f"m{number}")
    world.pruner.at_once = 2
    assert [world.pruner.turn(set()) for _ in range(4)] == [0.0, 0.0, 3600.0, 3600.0]


def test_a_machine_that_is_gone_by_its_turn_is_passed_over(world: KeptMachine) -> None:
    kept = nights(world, 3)
    world.cycle.turn()
    world.pruner.turn({"nobody"})
    prune(world)
    assert world.left() == kept[1:]


def test_a_directory_that_goes_away_in_between_loses_no_machine_from_its_turn(world: KeptMachine) -> None:
    kept = nights(world, 3)
    world.cycle.turn()
    ended = world.cycle.ended_well
    store: Any = world.catalogue.store
    search, away = store.search, [True]

    def fails_once(base: str, *more: Any, **named: Any) -> Any:
        if base == TREE.machine_plan("web") and away:
            away.clear()
            store.go_away()
        return search(base, *more, **named)

    store.search = fails_once
    with pytest.raises(TryLater):
        world.pruner.turn(ended)
    store.come_back()
    prune(world)
    assert world.left() == kept[1:]


def test_a_new_backup_is_begun_while_an_old_one_is_being_deleted(world: KeptMachine) -> None:
    kept = nights(world, 3)
    world.turn()
    assert world.catalogue.leaf(TREE.leaf("web", kept[0])).mode is Mode.DELETE  # type: ignore[union-attr]
    begun = start(
        world.catalogue,
        choose(world.catalogue, ["web"]),
        world.now + timedelta(minutes=1),
        BOUNDS,
        lambda: read_view(world.catalogue).leaves,
        lambda _round: None,
    )
    assert [choice.fate for choice in begun.choices] == [Fate.BACK_UP]


def test_what_is_asked_for_says_why_and_the_claim_is_taken_back_where_the_agent_refuses(world: KeptMachine) -> None:
    kept = nights(world, 3)
    world.turn()
    [asked] = [leaf for leaf in world.catalogue.leaves() if leaf.mode is Mode.DELETE]
    assert (asked.timestamp, asked.pruned) == (kept[0], "good, and no rule keeps it")
    refusal = Report(to_timestamp(world.now), 22, "web: it is held")
    world.catalogue.claim(asked, Mode.DELETING, refusal)
    for _ in range(3):
        world.now += timedelta(hours=1)
        prune(world)
    [back] = [leaf for leaf in world.catalogue.leaves() if leaf.timestamp == kept[0]]
    assert (back.is_good_backup, back.message, back.pruned) == (True, "not deleted: web: it is held", "")
    assert from_timestamp(back.state) == START + timedelta(hours=1)
    world.now += DAY
    prune(world)
    assert world.left() == kept[1:]
