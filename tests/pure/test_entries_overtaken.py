"""An admin backs out at any moment of the controller's work on an entry: the leaf is theirs, the machine as it was."""

from collections.abc import Callable
from typing import TypeVar

import pytest

from controller.actions import BringInLine, PutBack
from controller.entries import carry_out
from tests.pure.test_entries import (
    LEAF,
    LIVE,
    NOW,
    SAVED,
    TREE,
    WANTED,
    MortalStore,
    directory,
    leaf_in,
    shape,
    text,
    turn,
)
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

T = TypeVar("T")


class Overtaken(MortalStore):
    """A Store in which somebody backs out just before the n-th call."""

    def __init__(self, inner: MemoryStore, at: int) -> None:
        super().__init__(inner)
        self.inner = inner
        self.at = at

    def _called(self, what: Callable[[], T]) -> T:
        self.calls += 1
        if self.calls == self.at:
            self.inner.claim(LEAF, {}, {Attribute.MODE: ("finished",)})
        return what()


class TakenOver(MortalStore):
    """A Store in which another controller takes over just before the n-th call, and marks the leaf."""

    def __init__(self, inner: MemoryStore, at: int) -> None:
        super().__init__(inner)
        self.inner = inner
        self.at = at
        self.written: dict[int, str] = {}

    def _written(self, dn: str, what: Callable[[], T]) -> T:
        self.written[self.calls + 1] = dn
        return super()._written(dn, what)

    def _called(self, what: Callable[[], T]) -> T:
        self.calls += 1
        if self.calls == self.at:
            self.inner.claim(LEAF, {}, {Attribute.EPOCH: ("4",)})
        return what()


def bringing_in_line() -> MemoryStore:
    return directory(LIVE, "unretainedLargeFiles", vmkeepEntry=text(SAVED))


def putting_back() -> MemoryStore:
    kept = {"vmkeepEntry": text(SAVED), "vmkeepEntryBefore": text(LIVE)}
    return directory(WANTED, "restoring", sstProvisioningReturnValue="21", **kept)


@pytest.mark.parametrize("refused", ["", LIVE[3][0]], ids=["all allowed", "a part refused"])
@pytest.mark.parametrize("make", [bringing_in_line, putting_back])
def test_backing_out_at_any_moment_leaves_the_machine_as_it_was(make: Callable[[], MemoryStore], refused: str) -> None:
    original = shape(directory(LIVE, "x"), of_machine=True)
    at, was_reached = 1, True
    while was_reached:
        inner = make()
        store = Overtaken(inner, at)
        store.refuse = lambda dn: dn == refused
        turn(store)
        was_reached = store.calls >= at
        if was_reached:
            turn(inner)
            leaf = leaf_in(inner)
            assert leaf.raw_mode == "finished", f"the claim of call {at} was lost"
            assert leaf.entry_before == ""
            assert shape(inner, of_machine=True) == original, f"before call {at}"
        at += 1
    assert at > 3


@pytest.mark.parametrize("kept", ["", text(LIVE)], ids=["first", "again"])
@pytest.mark.parametrize("make", [bringing_in_line, putting_back])
def test_who_lost_the_lease_by_the_last_look_at_the_leaf_changes_no_entry(
    make: Callable[[], MemoryStore], kept: str
) -> None:
    """That look is a write on the leaf; nothing but the first change of an entry can be later than that."""
    never = carried_out(make, kept, 0)
    first_change = next(at for at, dn in never.written.items() if dn != LEAF)
    assert never.written.get(first_change - 1) == LEAF
    for at in range(1, first_change):
        store = carried_out(make, kept, at)
        assert shape(store.inner, of_machine=True) == shape(make(), of_machine=True), f"taken over before call {at}"


def carried_out(make: Callable[[], MemoryStore], kept: str, at: int) -> TakenOver:
    inner = make()
    if kept:
        inner.replace(LEAF, {Attribute.ENTRY_BEFORE: (kept,)})
    store = TakenOver(inner, at)
    step = BringInLine(leaf_in(inner)) if make is bringing_in_line else PutBack(leaf_in(inner))
    carry_out(Catalogue(store, TREE, lambda: 3), step, NOW)
    return store
