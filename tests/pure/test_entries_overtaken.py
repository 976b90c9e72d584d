"""An admin backs out at any moment of the controller's work on an entry: the leaf is theirs, the machine as it was."""

from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.pure.test_entries import LEAF, LIVE, SAVED, WANTED, MortalStore, directory, leaf_in, shape, text, turn
from vmkeep.contract.names import Attribute
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
