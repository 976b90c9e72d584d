"""What the leaves of a group are told: how far apart its instants are, whether it is whole, and who is missing."""

from collections.abc import Mapping

import pytest

from tests.pure.controlled_cluster import SLOT, TREE, ControlledCluster, CountingStore
from vmkeep.contract.errors import TryLater
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Report
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Filter


def shop(*names: str) -> ControlledCluster:
    """A cluster with one group, whose leaves are there."""
    cluster = ControlledCluster()
    for number, name in enumerate(names):
        cluster.add_machine(name, f"n{number}", GROUP="Shop")
    cluster.add_leaves(*names)
    cluster.turn()
    return cluster


def judged(cluster: ControlledCluster, *machines: str) -> list[tuple[str, str]]:
    leaves = [cluster.leaf(machine) for machine in machines]
    return [(leaf.group_consistency, leaf.group_spread) for leaf in leaves]


def test_a_whole_group_is_told_its_spread() -> None:
    cluster = shop("a", "b")
    cluster.begin("a", "b")
    cluster.end("a", instant=-0.5)
    cluster.turn()
    assert judged(cluster, "a", "b") == [("", "")] * 2, "nothing is said before all have ended"
    cluster.end("b", instant=-0.75)
    cluster.turn()
    assert judged(cluster, "a", "b") == [("consistent", "0.750")] * 2
    assert cluster.modes("a", "b") == ["merge", "merge"]
    assert "group Shop of 20260101T120000Z is consistent, its instants lie within 0.750 s by the nodes' clocks" in (
        cluster.lines()
    )
    value = cluster.metrics.registry.get_sample_value("vmkeep_group_spread_seconds", {"group": "Shop"})
    assert value == 0.75


def test_one_that_fails_marks_all_with_its_name_and_the_others_go_on() -> None:
    cluster = shop("a", "b", "c")
    cluster.begin("a", "b", "c")
    for name, code in (("a", 0), ("b", 47), ("c", 0)):
        cluster.end(name, code)
    cluster.turn()
    told = "inconsistent: b failed in snapshotting (return value 47, not enough disk space)"
    assert judged(cluster, "a", "b", "c") == [(told, "0.000")] * 3
    assert cluster.modes("a", "b", "c") == ["merge", "snapshotting", "merge"]
    assert cluster.metrics.registry.get_sample_value("vmkeep_broken_groups_total", {"group": "Shop"}) == 1
    said = len(cluster.lines())
    cluster.turn()
    assert len(cluster.lines()) == said, "and is told once"


def test_one_that_nobody_took_up_marks_all_though_its_leaf_is_out_of_sight() -> None:
    cluster = shop("a", "b")
    cluster.begin("a")
    cluster.end("a")
    cluster.turn()
    cluster.turn(400)
    told = "inconsistent: b failed (return value 100, no agent took the work up in time)"
    assert judged(cluster, "a", "b") == [(told, "")] * 2


def test_one_that_fails_for_good_later_marks_those_that_are_finished() -> None:
    cluster = shop("a", "b")
    cluster.begin("a", "b")
    cluster.end("a")
    cluster.end("b")
    for _ in range(3):
        cluster.turn()
        cluster.begin("a") if cluster.leaf("a").mode in (Mode.MERGE, Mode.RETAIN) else None
        cluster.end("a") if cluster.leaf("a").is_at_work else None
    assert cluster.modes("a", "b") == ["finished", "merge"]
    assert judged(cluster, "a", "b") == [("consistent", "0.000")] * 2
    cluster.begin("b")
    cluster.end("b", 11)
    cluster.turn()
    told = "inconsistent: b failed in merging (return value 11, cannot merge disk images)"
    assert judged(cluster, "a", "b") == [(told, "0.000")] * 2
    assert cluster.leaf("a").is_good_backup, "it is a good backup of its machine all the same"


class AwayOnce(CountingStore):
    """The directory is away at one of the writes of verdicts, the first being 0."""

    left = 0

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        if Attribute.GROUP_CONSISTENCY in changes:
            self.left -= 1
            if self.left == -1:
                raise TryLater("the directory is away")
        return super().claim(dn, expected, changes, additions, provided)


@pytest.mark.parametrize("anew", [False, True], ids=["the-same-controller", "another-controller"])
@pytest.mark.parametrize("write", range(3))
def test_a_verdict_that_was_broken_off_is_told_to_all_in_the_end(write: int, anew: bool) -> None:
    """Two are finished and in nobody's sight any more when the third fails."""
    cluster = shop("a", "b", "c")
    cluster.begin("a", "b", "c")
    for name in ("a", "b", "c"):
        cluster.end(name)
    cluster.turn()
    for name in ("a", "c"):
        report = Report("20260101T120100Z")
        cluster.catalogue.claim(cluster.leaf(name), Mode.FINISHED, report)
    assert judged(cluster, "a", "b", "c") == [("consistent", "0.000")] * 3
    cluster.begin("b")
    cluster.end("b", 11)
    cluster.store.__class__ = AwayOnce
    cluster.store.left = write  # type: ignore[attr-defined]
    with pytest.raises(TryLater):
        cluster.turn()
    if anew:
        cluster.start_controller()
    cluster.turn()
    assert {text.partition(":")[0] for text, _ in judged(cluster, "a", "b", "c")} == {"inconsistent"}


def test_a_machine_of_the_group_without_a_leaf_of_that_time_is_told() -> None:
    cluster = ControlledCluster()
    for name in ("a", "b", "c", "d"):
        cluster.add_machine(name, GROUP="shop", **({"EXCLUDE": "TRUE"} if name == "d" else {}))
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.begin("a", "b")
    cluster.end("a")
    cluster.end("b", instant=None)
    cluster.turn()
    told = "inconsistent: b does not know its instant; c has no leaf of this time"
    assert judged(cluster, "a", "b") == [(told, "")] * 2


def test_what_a_killed_controller_did_not_write_the_next_one_does() -> None:
    cluster = shop("a", "b")
    cluster.begin("a", "b")
    cluster.end("a")
    cluster.end("b", 47)
    cluster.start_controller()
    cluster.turn()
    assert all(consistency.startswith("inconsistent: b failed") for consistency, _ in judged(cluster, "a", "b"))


def test_a_group_that_nobody_was_asked_of_yet_is_not_judged_by_those_who_were() -> None:
    cluster = ControlledCluster()
    cluster.add_machine("a", GROUP="shop", SEQUENCE_STOP="1")
    cluster.add_machine("b", GROUP="shop", SEQUENCE_STOP="2")
    cluster.add_leaves("a", "b")
    cluster.turn()
    cluster.begin("a")
    cluster.end("a")
    cluster.cycle.verdicts.tell(list(cluster.catalogue.leaves()), None)  # type: ignore[union-attr]
    assert judged(cluster, "a", "b") == [("", "")] * 2
    cluster.turn()
    assert cluster.modes("a", "b") == ["snapshotted", "snapshot"]


def test_leaves_that_may_not_be_written_to_are_told_once_and_hold_nobody_up() -> None:
    cluster = shop("a", "b")
    cluster.begin("a", "b")
    cluster.end("a")
    cluster.end("b", 47)
    cluster.store.refuses_verdicts = True
    cluster.turn()
    said = [line for line in cluster.lines() if "cannot be told of its group" in line]
    assert len(said) == 2
    cluster.turn()  # which still sees the change of the turn before
    cluster.turn()
    again = len(cluster.lines())
    cluster.turn()
    assert len(cluster.lines()) == again
    assert cluster.modes("a") == ["merge"]


def test_a_restore_that_fails_says_nothing_of_the_group() -> None:
    cluster = shop("a", "b")
    cluster.begin("a", "b")
    cluster.end("a")
    cluster.end("b")
    cluster.turn()
    changes = {Attribute.MODE: ("restoring",), Attribute.STATE: ("20260101T130000Z",), Attribute.RETURN_VALUE: ("42",)}
    cluster.store.replace(TREE.leaf("b", SLOT), changes)
    said = len(cluster.lines())
    cluster.turn()
    assert len(cluster.lines()) == said
    cluster.begin("a")
    cluster.end("a", 11)
    cluster.turn()
    told = "inconsistent: a failed in merging (return value 11, cannot merge disk images)"
    assert judged(cluster, "a", "b") == [(told, "0.000")] * 2
