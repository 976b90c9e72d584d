"""A result is let go only once the directory has it, and only whoever still holds the leaf may tell it."""

from pathlib import Path
from typing import Any

import pytest
import structlog

from nodeagent.journal import Fact, Journal, Journals, Outcome
from nodeagent.reporting import report
from tests.orders import order_in
from vmkeep.contract.errors import TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

TREE = Tree("dc=example,dc=org")
DN = TREE.leaf("vm", "20260101T000000Z")


@pytest.fixture
def store() -> MemoryStore:
    """A directory with one leaf that is being merged."""
    store = MemoryStore(TREE.machines)
    store.add(TREE.machine("vm"), {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: ("vm",)})
    store.add(TREE.machine_plan("vm"), {"objectClass": (ObjectClass.BACKUP,)})
    modes = {Attribute.MODE: ("merging",), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
    store.add(DN, {"objectClass": ("organizationalUnit", ObjectClass.PROVISIONING), **modes})
    return store


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Of a merge that came out well."""
    order = order_in(tmp_path, Mode.MERGING).model_copy(update={"leaf_dn": DN})
    journal = Journals(tmp_path / "journal").create(order)
    journal.result(Outcome(0, "", 1.0))
    return journal


def told(store: MemoryStore, journal: Journal, known: Leaf) -> bool:
    return report(Catalogue(store, TREE), journal, known, structlog.wrap_logger(None, processors=[_drop]))


def _drop(_logger: object, _name: str, _event: object) -> Any:
    raise structlog.DropEvent


def leaf(store: MemoryStore) -> Leaf:
    found = Catalogue(store, TREE).leaf(DN)
    assert found is not None
    return found


def test_a_result_is_kept_until_the_directory_has_it(store: MemoryStore, journal: Journal) -> None:
    known = leaf(store)
    store.go_away()
    with pytest.raises(TryLater):
        told(store, journal, known)
    assert journal.path.exists()
    store.come_back()
    assert told(store, journal, known)
    assert leaf(store).mode is Mode.MERGED
    assert not journal.path.exists()


@pytest.mark.parametrize("mode", ["merge", "finished", "retaining"])
def test_the_result_of_a_leaf_that_somebody_moved_changes_nothing(
    store: MemoryStore, journal: Journal, mode: str
) -> None:
    store.replace(DN, {Attribute.MODE: (mode,)})
    before = store.read(DN)
    assert not told(store, journal, leaf(store))
    assert store.read(DN) == before
    assert not journal.path.exists(), "nobody else will ever ask for it"


@pytest.mark.parametrize(
    ("facts", "instant"),
    [
        ({"down_at": 1767225600.25, "downtime": 1.5}, ["20260101T000000.250000Z"]),
        ({"down_at": 1.0, "instant": 1767225601.5}, ["20260101T000001.500000Z"]),
        ({}, []),
    ],
)
def test_a_snapshot_tells_its_instant_where_it_is_known(
    store: MemoryStore, tmp_path: Path, facts: dict[str, Fact], instant: list[str]
) -> None:
    order = order_in(tmp_path, Mode.SNAPSHOTTING).model_copy(update={"leaf_dn": DN})
    journal = Journals(tmp_path / "journal").create(order)
    journal.ended("save", facts)
    journal.result(Outcome(0, "", 1.0))
    store.replace(DN, {Attribute.MODE: ("snapshotting",)})
    assert told(store, journal, leaf(store))
    assert [one for one in (leaf(store).instant,) if one] == instant
