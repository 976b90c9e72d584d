"""Groups and budgets over whole turns of the controller: what is read for them, what is told, nodes that are down."""

import pytest

from controller.budgets import Budget
from controller.places import place_of
from tests.pure.controlled_cluster import SLOT, TREE, ControlledCluster
from vmkeep.contract.machine import Machine
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Source
from vmkeep.directory.survey import Surveyed


def test_where_nobody_uses_groups_or_budgets_one_small_search_is_all_that_is_read_for_them() -> None:
    cluster = ControlledCluster()
    cluster.add_machine("a")
    cluster.add_leaves("a")
    cluster.turn()
    before = cluster.store.searches
    cluster.turn()
    assert cluster.store.searches - before == 1, "the leaves that have not ended"
    cluster.add_machine("b")
    cluster.add_leaves("b")
    cluster.turn()
    assert cluster.store.searches - before == 3, "and whether any plan names a group, when a leaf comes"


def test_plans_are_not_read_again_in_every_turn_of_a_run() -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(overall=1)})
    cluster.add_machine("a")
    cluster.add_machine("b")
    cluster.add_leaves("a", "b")
    cluster.turn()
    before = cluster.store.searches
    cluster.begin("a")
    cluster.turn()
    assert cluster.store.searches - before == 1


def test_a_plan_that_is_edited_while_a_leaf_waits_counts_after_a_while() -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(per_node=1)})
    cluster.add_machine("a")
    cluster.add_machine("b")
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.store.replace(TREE.machine("b"), {Attribute.NODE: ("n2",)})
    cluster.turn()
    assert cluster.modes("a", "b") == ["snapshot", "initialized"]
    cluster.turn(61)
    assert cluster.modes("a", "b") == ["snapshot", "snapshot"]


def test_no_more_is_asked_for_than_the_budgets_say_in_one_turn_or_over_many() -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(overall=2), Mode.MERGE: Budget(per_node=1)})
    names = [f"m{number}" for number in range(5)]
    for number, name in enumerate(names):
        cluster.add_machine(name, f"n{number % 2}")
    cluster.add_leaves(*names)
    at_once = dict.fromkeys(("snapshot", "merge"), 0)
    for _ in range(40):
        cluster.turn()
        for kind in at_once:
            at_once[kind] = max(at_once[kind], cluster.modes(*names).count(kind))
        asked = [name for name in names if cluster.leaf(name).mode in (Mode.SNAPSHOT, Mode.MERGE, Mode.RETAIN)]
        cluster.begin(*asked)
        for name in asked:
            cluster.end(name)
    assert cluster.modes(*names) == ["finished"] * 5
    assert at_once == {"snapshot": 2, "merge": 2}


def test_a_node_that_is_down_gives_the_room_back_and_takes_it_again_when_it_returns() -> None:
    cluster = ControlledCluster({Mode.MERGE: Budget(overall=1)})
    cluster.add_machine("a", "n1")
    cluster.add_machine("b", "n2")
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.begin("a", "b")
    cluster.end("a")
    cluster.end("b")
    cluster.turn()
    cluster.turn()
    assert cluster.modes("a", "b") == ["merge", "snapshotted"]
    cluster.turn(298)
    assert cluster.modes("a", "b") == ["merge", "snapshotted"]
    cluster.turn(2)
    assert cluster.modes("a", "b") == ["merge", "merge"]
    assert any(line.startswith("n1 gives no sign of life") for line in cluster.lines())
    cluster.begin("a")
    cluster.turn()
    assert "n1 is heard of again, and counts" in cluster.lines()


def test_what_the_controller_writes_for_a_node_that_is_down_is_no_sign_of_life() -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(overall=1)})
    for name in ("a", "b", "c"):
        cluster.add_machine(name, "n2" if name == "c" else "n1", DEADLINE="1000")
    cluster.add_leaves("a", "b", "c")
    cluster.turn()
    cluster.begin("a")
    cluster.turn()
    cluster.turn(900)
    assert cluster.modes("b", "c") == ["initialized", "snapshot"]
    cluster.turn(101)
    assert cluster.leaf("a").return_value == 108
    cluster.turn()
    assert not [line for line in cluster.lines() if "is heard of again" in line]


def test_an_agent_that_is_busy_with_another_machine_of_its_node_is_there() -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(overall=2)})
    cluster.add_machine("a")
    cluster.add_machine("b")
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.begin("a")
    for percent in range(1, 10):
        cluster.turn(100)
        cluster.catalogue.note(cluster.leaf("a"), {Attribute.PERCENT: (str(percent),)})
    assert cluster.modes("a", "b") == ["snapshotting", "snapshot"]
    assert not [line for line in cluster.lines() if "no sign of life" in line]


def test_work_that_stands_without_a_word_is_a_node_that_is_down_too() -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(overall=1)})
    cluster.add_machine("a", "n1")
    cluster.add_machine("b", "n2")
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.begin("a")
    cluster.turn()
    cluster.turn(800)
    assert cluster.modes("a", "b") == ["snapshotting", "initialized"]
    cluster.turn(101)
    assert cluster.modes("a", "b") == ["snapshotting", "snapshot"]


@pytest.mark.parametrize(
    ("plan", "seconds"),
    [
        ({"WINDOW": "60"}, 61),
        ({"CRON_MINUTE": "*/5", "CRON_HOUR": "*", "CRON_ACTIVE": "TRUE", "WINDOW": "x"}, 301),
    ],
)
def test_a_leaf_without_a_snapshot_when_its_window_is_over_is_told_once_and_goes_on_waiting(
    plan: dict[str, str], seconds: int
) -> None:
    cluster = ControlledCluster({Mode.SNAPSHOT: Budget(overall=1)})
    cluster.add_machine("a")
    cluster.add_machine("b", **plan)
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.begin("a")
    cluster.turn(seconds - 2)
    assert not [line for line in cluster.lines() if "window" in line]
    cluster.turn(2)
    cluster.turn()
    [line] = [line for line in cluster.lines() if "window" in line]
    assert line == (
        f"b: the window of {SLOT} is over, and its snapshot is not made: the leaf stands at initialized, because of "
        "this: 1 of 1 overall taken; it goes on waiting"
    )
    assert cluster.metrics.registry.get_sample_value("vmkeep_late") == 1
    assert cluster.metrics.registry.get_sample_value("vmkeep_waiting") == 1
    cluster.end("a")
    cluster.turn()
    assert cluster.modes("b") == ["snapshot"]


def test_a_machine_whose_leaving_out_cannot_be_read_has_its_place_all_the_same() -> None:
    source = Source(
        "machine", "ou=backup", {Attribute.EXCLUDE: ["perhaps"], Attribute.BACKUP_ROOT: ["file:///backup/"]}
    )
    place = place_of(Surveyed(Machine("dn", "web", "n1"), (source,)))
    assert (place.piece.node, place.piece.root, place.is_left_out) == ("n1", "file:///backup", False)
