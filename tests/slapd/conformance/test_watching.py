"""Whom a watch wakes, and what happens while the server is away, on a real server and in memory."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lab.waiting import until
from tests.slapd.conformance.conftest import Bench
from tests.slapd.conformance.entries import NUMBERS, add_leaf, add_unit
from tests.slapd.small_directory import SUFFIX
from vmkeep.contract.errors import TryLater
from vmkeep.contract.names import Attribute
from vmkeep.directory.port import ANYTHING, AllOf, Claim, Equals, Store, Watcher


class Alarm:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def rings_after(self, action: Callable[[], object], limit: float = 5.0) -> bool:
        with self._changed:
            before = self.count
        action()
        with self._changed:
            return self._changed.wait_for(lambda: self.count > before, limit)

    def is_quiet(self, seconds: float = 0.15) -> bool:
        with self._changed:
            before = self.count
            return not self._changed.wait_for(lambda: self.count > before, seconds)


@pytest.fixture
def alarm(store: Store, base: str) -> Iterator[Alarm]:
    """Rings for leaves below base whose State is 0."""
    ringing = Alarm()
    matching = AllOf((Equals("objectClass", "sstProvisioning"), Equals(Attribute.STATE, "0")))
    with store.watch(base, matching, ringing) as watcher:
        until("the first wake-up", lambda: ringing.count, 5)
        until("it to be alive", watcher.alive, 5)
        assert watcher.kind == "sync"
        yield ringing


def test_a_watch_wakes_for_what_is_added_changed_entered_left_and_deleted(
    store: Store, base: str, alarm: Alarm
) -> None:
    leaf = add_leaf(store, base, "snapshot", "x")
    assert alarm.is_quiet()
    assert alarm.rings_after(lambda: add_leaf(store, base, "snapshot", "0", "20260102T000000Z"))
    assert alarm.rings_after(lambda: store.claim(leaf, {Attribute.STATE: "x"}, {Attribute.STATE: ("0",)}))
    assert alarm.rings_after(lambda: store.claim(leaf, {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("merge",)}))
    assert alarm.rings_after(lambda: store.claim(leaf, {Attribute.STATE: "0"}, {Attribute.STATE: ("x",)}))
    assert alarm.is_quiet()
    assert alarm.rings_after(lambda: store.delete(f"ou=20260102T000000Z,{base}"))


def test_a_watch_is_not_woken_by_others(store: Store, base: str, alarm: Alarm) -> None:
    elsewhere = add_unit(store, f"elsewhere {next(NUMBERS)}", SUFFIX)
    add_leaf(store, elsewhere)
    add_unit(store, "no leaf", base)
    assert alarm.is_quiet()


def test_a_watch_that_polls_nothing_is_alive_and_woken_where_the_server_notifies(store: Store, base: str) -> None:
    ringing = Alarm()
    with store.watch(base, ANYTHING, ringing, polls=False) as watcher:
        until("it to be alive", watcher.alive, 5)
        assert ringing.rings_after(lambda: add_leaf(store, base))


def test_a_closed_watch_wakes_nobody(store: Store, base: str) -> None:
    ringing = Alarm()
    watcher = store.watch(base, ANYTHING, ringing)
    until("the first wake-up", lambda: ringing.count, 5)
    began = time.monotonic()
    watcher.close()
    assert time.monotonic() - began < 15
    assert not watcher.alive()
    add_leaf(store, base)
    assert ringing.is_quiet()


def test_a_watch_that_comes_back_is_alive_only_after_it_has_woken_its_owner(bench: Bench, base: str) -> None:
    watching: list[Watcher] = []
    alive_when_woken: list[bool] = []

    def wake() -> None:
        alive_when_woken.extend(watcher.alive() for watcher in watching)

    with bench.store.watch(base, ANYTHING, wake) as watcher:
        until("it to be alive", watcher.alive, 5)
        watching.append(watcher)
        bench.go_away()
        until("the end to be noticed", lambda: not watcher.alive(), 5)
        bench.come_back()
        until("it to be alive again", watcher.alive, 10)
        assert alive_when_woken[0] is False, "whoever saw it alive would have taken what it knew for all there is"


def test_while_the_server_is_away_everything_says_try_later_and_then_all_goes_on(bench: Bench) -> None:
    store = bench.store
    base = add_unit(store, f"away {next(NUMBERS)}", SUFFIX)
    dn = add_leaf(store, base)
    ringing = Alarm()
    with store.watch(base, ANYTHING, ringing) as watcher:
        until("the first wake-up", lambda: ringing.count, 5)
        bench.go_away()
        calls: list[Callable[[], object]] = [
            lambda: store.read(dn),
            lambda: list(store.search(base)),
            lambda: store.add(f"ou=x,{base}", {"objectClass": ("organizationalUnit",), "ou": ("x",)}),
            lambda: store.claim(dn, {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("merge",)}),
            lambda: store.replace(dn, {"description": ("x",)}),
            lambda: store.delete(dn),
        ]
        for call in calls:
            with pytest.raises(TryLater):
                call()
        assert ringing.rings_after(bench.come_back, 10)
        until("the watch to be alive again", watcher.alive, 5)
        assert store.claim(dn, {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("merge",)}) is Claim.WON
        assert ringing.rings_after(lambda: store.delete(dn))
