"""A group's order of starting over whole turns of a controller: what is decided in one round holds in the next."""

from collections.abc import Mapping

import pytest

from tests.pure.controlled_cluster import SLOT, TREE, ControlledCluster, CountingStore
from vmkeep.contract.leaf import NOW
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Report
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Filter

ORDER = ("db", "app", "web")


@pytest.fixture
def shop() -> ControlledCluster:
    cluster = ControlledCluster()
    for number, name in enumerate(ORDER):
        cluster.add_machine(name, f"n{number}", GROUP="Shop", SEQUENCE_START=str(number))
    cluster.add_leaves(*ORDER)
    cluster.turn()
    return cluster


def started(cluster: ControlledCluster, name: str) -> None:
    leaf = cluster.leaf(name)
    cluster.catalogue.note(leaf, {Attribute.STARTED: ("20260101T120001.000000Z",)})


def waits(cluster: ControlledCluster) -> list[int | None]:
    return [cluster.leaf(name).start_wait for name in ORDER]


def test_each_is_let_run_on_once_the_one_before_it_runs(shop: ControlledCluster) -> None:
    shop.begin(*ORDER)
    shop.turn()
    assert waits(shop) == [0, 60, 60]
    started(shop, "db")
    shop.turn()
    assert waits(shop) == [0, 0, 60]
    started(shop, "app")
    shop.turn()
    assert waits(shop) == [0, 0, 0]


class Overtaking(CountingStore):
    """An agent takes up what it was asked for right before the controller writes to that leaf."""

    overtaken = ""

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        if dn == self.overtaken:
            self.overtaken = ""
            super().claim(dn, {}, {Attribute.MODE: (Mode.SNAPSHOTTING,)})
        return super().claim(dn, expected, changes, additions, provided)


def test_one_that_moves_in_the_moment_it_is_let_go_still_comes_before_others(shop: ControlledCluster) -> None:
    shop.begin("db", "web")
    started(shop, "db")
    shop.store.__class__ = Overtaking
    shop.store.overtaken = TREE.leaf("app", SLOT)  # type: ignore[attr-defined]
    shop.turn()
    assert waits(shop) == [0, 60, 60], "nobody goes by a leaf that was not read again"
    shop.turn()
    assert waits(shop) == [0, 0, 60]


def test_a_restore_waits_also_within_the_turn_in_which_the_one_before_it_is_asked_for(shop: ControlledCluster) -> None:
    for name in ORDER:
        lines = to_ldif(shop.catalogue.subtree(name)).splitlines(keepends=True)
        entry = "".join(line for line in lines if not line.startswith("modifyTimestamp"))
        report = Report("20260101T120100Z", extra={Attribute.ENTRY: (entry,), Attribute.GROUP: ("Shop",)})
        shop.catalogue.claim(shop.leaf(name), Mode.UNRETAINED_LARGE_FILES, report)
    shop.turn()
    assert shop.modes(*ORDER) == ["restore", "unretainedLargeFiles", "unretainedLargeFiles"]
    shop.turn()
    assert shop.modes(*ORDER) == ["restore", "unretainedLargeFiles", "unretainedLargeFiles"]
    said = [line for line in shop.lines() if "waits (group Shop: db is restored first)" in line]
    assert [line.partition(":")[0] for line in said] == ["app", "web"], "once each"
    shop.begin("db")
    shop.catalogue.claim(shop.leaf("db"), Mode.RESTORED, Report("20260101T120200Z"))
    shop.turn()
    assert shop.modes(*ORDER) == ["finished", "restore", "unretainedLargeFiles"]
    shop.catalogue.note(shop.leaf("web"), {Attribute.GROUP: ()})
    shop.turn()
    assert shop.modes("web") == ["restore"], "as the log says"
    assert shop.leaf("web").state == NOW
