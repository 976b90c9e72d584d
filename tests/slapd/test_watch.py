"""The watch on a real server: what wakes it, how it comes back, what it does without syncprov, and how fast it is."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.slapd import Slapd, SlapdOptions
from lab.waiting import until
from tests.conftest import SlapdFactory
from tests.slapd.small_directory import ROOT_ENTRY, SUFFIX
from tests.slapd.unreliable_wire import SEARCH, UnreliableWire
from vmkeep.contract.errors import TryLater
from vmkeep.contract.names import Attribute
from vmkeep.directory import open_store
from vmkeep.directory.port import ANYTHING, AllOf, Claim, Equals, Store
from vmkeep.directory.settings import DirectorySettings
from vmkeep.directory.sync_protocol import ends_refresh, is_cookie_only

ASKED = AllOf((Equals("objectClass", "sstProvisioning"), Equals(Attribute.STATE, "0")))


class Bell:
    """Counts wake-ups and when they came."""

    def __init__(self) -> None:
        self.rung: list[float] = []
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.rung.append(time.monotonic())
            self._changed.notify_all()

    def wait_beyond(self, count: int, limit: float = 5.0) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.rung) > count, limit)


def _server(slapd_factory: SlapdFactory, watchable: bool) -> Slapd:
    options = SlapdOptions(tree=None, configuration=(), synchronous=False, watchable=watchable)
    server = slapd_factory(options)
    server.add(ROOT_ENTRY)
    return server


@pytest.fixture(scope="module")
def server(slapd_factory: SlapdFactory) -> Slapd:
    return _server(slapd_factory, watchable=True)


@pytest.fixture(scope="module")
def plain_server(slapd_factory: SlapdFactory) -> Slapd:
    """One without syncprov."""
    return _server(slapd_factory, watchable=False)


def _open(uri: str, **more: object) -> Store:
    how = {"uri": uri, "suffix": SUFFIX, "timeout_seconds": 1, "poll_seconds": 0.05, "probe_seconds": 0.3, **more}
    return open_store(DirectorySettings.model_validate(how))


@pytest.fixture
def store(server: Slapd) -> Iterator[Store]:
    store = _open(server.uri)
    yield store
    store.close()


@pytest.fixture
def leaf(store: Store) -> Iterator[str]:
    yield _add_leaf(store)
    store.delete(f"ou=leaf,{SUFFIX}")


def _add_leaf(store: Store) -> str:
    dn = f"ou=leaf,{SUFFIX}"
    modes = {Attribute.MODE: ("m0",), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
    assert store.add(dn, {"objectClass": ("organizationalUnit", "sstProvisioning"), "ou": ("leaf",), **modes})
    return dn


def _change(store: Store, leaf: str, number: int) -> None:
    assert store.claim(leaf, {Attribute.MODE: f"m{number}"}, {Attribute.MODE: (f"m{number + 1}",)}) is Claim.WON


def test_every_change_wakes_and_quickly(store: Store, leaf: str) -> None:
    bell = Bell()
    delays = []
    with store.watch(SUFFIX, ASKED, bell):
        assert bell.wait_beyond(0)
        for number in range(100):
            heard, began = len(bell.rung), time.monotonic()
            _change(store, leaf, number)
            assert bell.wait_beyond(heard), number
            delays.append(bell.rung[heard] - began)
    delays.sort()
    print(f"change to wake-up: median {delays[50] * 1000:.1f} ms, 99 % {delays[98] * 1000:.1f} ms")
    assert delays[50] < 0.1


def test_a_mistake_of_the_owner_is_logged_and_the_watch_begins_anew(
    store: Store, leaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmkeep.directory.watch._LONGEST_PAUSE", 0.1)
    bell = Bell()

    def wake() -> None:
        bell()
        if len(bell.rung) == 1:
            raise ValueError("the owner's mistake")

    with store.watch(SUFFIX, ASKED, wake) as watcher:
        assert bell.wait_beyond(1)
        until("the watch to be alive again", watcher.alive, 5)
        heard = len(bell.rung)
        _change(store, leaf, 0)
        assert bell.wait_beyond(heard)


def test_a_server_killed_and_started_again_is_watched_again(server: Slapd, store: Store, leaf: str) -> None:
    bell = Bell()
    with store.watch(SUFFIX, ASKED, bell) as watcher:
        assert bell.wait_beyond(0)
        for number in range(3):
            server.kill()
            until("the watch to notice", lambda: not watcher.alive(), 3)
            heard = len(bell.rung)
            server.start()
            assert bell.wait_beyond(heard, 10)
            until("the watch to be alive", watcher.alive, 3)
            heard = len(bell.rung)
            _change(store, leaf, number)
            assert bell.wait_beyond(heard)


def test_whoever_reads_when_woken_sees_every_change_through_crashes(server: Slapd, store: Store) -> None:
    tree = f"ou=torture,{SUFFIX}"
    store.add(tree, {"objectClass": ("organizationalUnit",), "ou": ("torture",)})
    leaves = [f"ou={number},{tree}" for number in range(6)]
    for number, leaf in enumerate(leaves):
        classes = ("organizationalUnit", "sstProvisioning")
        modes = {Attribute.MODE: ("m0",), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
        store.add(leaf, {"objectClass": classes, "ou": (str(number),), **modes})
    owner = _Owner(store, tree)
    with store.watch(tree, ASKED, owner.woken.set):
        for round_number in range(3):
            writers = [
                threading.Thread(target=_write_until_refused, args=(store, part, round_number))
                for part in (leaves[:3], leaves[3:])
            ]
            for writer in writers:
                writer.start()
            time.sleep(0.1)  # writing goes on meanwhile; nothing is waited for
            server.kill()
            for writer in writers:
                writer.join(10)
            server.start()
            until("the owner to see what is there", lambda: owner.seen == _modes(store, tree), 3.5)
    owner.stop()


class _Owner:
    """Reads everything whenever it is woken, and only then."""

    def __init__(self, store: Store, tree: str) -> None:
        self.woken = threading.Event()
        self.seen: dict[str, str | None] = {}
        self._stopping = False
        self._store, self._tree = store, tree
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self.woken.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stopping:
            self.woken.wait()
            self.woken.clear()
            with contextlib.suppress(TryLater):
                self.seen = _modes(self._store, self._tree)


def _modes(store: Store, tree: str) -> dict[str, str | None]:
    return {entry.dn: entry.first(Attribute.MODE) for entry in store.search(tree, ASKED)}


def _write_until_refused(store: Store, leaves: list[str], round_number: int) -> None:
    with contextlib.suppress(TryLater):
        for number in range(100_000):
            store.replace(leaves[number % len(leaves)], {Attribute.MODE: (f"r{round_number} {number}",)})


def test_what_changed_while_nobody_watched_is_not_missed(
    server: Slapd, store: Store, leaf: str, tmp_path: Path
) -> None:
    bell = Bell()
    wire = UnreliableWire(tmp_path / "wire", server.socket)
    distant = _open(wire.uri)
    with distant.watch(SUFFIX, ASKED, bell) as watcher:
        assert bell.wait_beyond(0)
        wire.close()
        until("the watch to notice", lambda: not watcher.alive(), 3)
        _change(store, leaf, 0)
        heard = len(bell.rung)
        (tmp_path / "wire").unlink()
        wire = UnreliableWire(tmp_path / "wire", server.socket)
        assert bell.wait_beyond(heard, 10)
    distant.close()
    wire.close()


def test_a_connection_that_died_without_a_word_is_noticed(server: Slapd, leaf: str, tmp_path: Path) -> None:
    bell = Bell()
    wire = UnreliableWire(tmp_path / "wire", server.socket)
    distant = _open(wire.uri)
    with distant.watch(SUFFIX, ASKED, bell) as watcher:
        assert bell.wait_beyond(0)
        wire.silent.set()
        until("the watch to notice", lambda: not watcher.alive(), 5)
        heard = len(bell.rung)
        wire.silent.clear()
        assert bell.wait_beyond(heard, 10)
        until("the watch to be alive", watcher.alive, 3)
    distant.close()
    wire.close()


def test_a_silent_but_healthy_server_is_asked_and_kept(server: Slapd, tmp_path: Path) -> None:
    bell = Bell()
    wire = UnreliableWire(tmp_path / "wire", server.socket)
    distant = _open(wire.uri, probe_seconds=0.05)
    with distant.watch(SUFFIX, ASKED, bell) as watcher:
        assert bell.wait_beyond(0)
        until("five probes", lambda: wire.seen.count(SEARCH) >= 6, 5)
        assert watcher.alive()
        assert len(bell.rung) == 1
    distant.close()
    wire.close()


def test_a_base_that_comes_later_is_watched_once_it_is_there(store: Store) -> None:
    bell = Bell()
    late = f"ou=late,{SUFFIX}"
    with store.watch(late, ANYTHING, bell) as watcher:
        assert not bell.wait_beyond(0, 0.3)
        assert not watcher.alive()
        store.add(late, {"objectClass": ("organizationalUnit",), "ou": ("late",)})
        assert bell.wait_beyond(0, 10)
    store.delete(late)


def test_no_thread_and_no_connection_is_left_behind(store: Store) -> None:
    before = threading.active_count()
    for _ in range(5):
        bell = Bell()
        with store.watch(SUFFIX, ASKED, bell):
            assert bell.wait_beyond(0)
    with store.watch(SUFFIX, ASKED, Bell()):
        pass  # closed while it still connects
    until("all threads to end", lambda: threading.active_count() == before, 5)


def test_a_watch_may_be_closed_by_the_one_it_wakes(store: Store) -> None:
    done = threading.Event()

    def close() -> None:
        opened.wait(5)
        watcher.close()
        done.set()

    opened = threading.Event()
    watcher = store.watch(SUFFIX, ANYTHING, close)
    opened.set()
    assert done.wait(5)
    until("the thread to end", lambda: not watcher.alive(), 5)


def test_a_watch_on_a_hanging_server_closes_within_bounds(server: Slapd) -> None:
    store = _open(server.uri)
    server.pause()
    try:
        watcher = store.watch(SUFFIX, ANYTHING, Bell())
        began = time.monotonic()
        watcher.close()
        assert time.monotonic() - began < 15
    finally:
        server.unpause()
    store.close()


# without syncprov


def test_a_server_without_syncprov_is_polled(plain_server: Slapd) -> None:
    store = _open(plain_server.uri)
    bell = Bell()
    with store.watch(SUFFIX, ASKED, bell) as watcher:
        assert bell.wait_beyond(0)
        until("the watch to be alive", watcher.alive, 3)
        assert watcher.kind == "poll"
        steps: list[Callable[[], object]] = [
            lambda: _add_leaf(store),
            lambda: _change(store, f"ou=leaf,{SUFFIX}", 0),
            lambda: store.replace(f"ou=leaf,{SUFFIX}", {Attribute.STATE: ("1",)}),
            lambda: store.replace(f"ou=leaf,{SUFFIX}", {Attribute.STATE: ("0",)}),
            lambda: store.delete(f"ou=leaf,{SUFFIX}"),
        ]
        for step in steps:
            heard = len(bell.rung)
            step()
            assert bell.wait_beyond(heard)
        heard = len(bell.rung)
        assert not bell.wait_beyond(heard, 0.3)
    store.close()


def test_polling_goes_on_after_a_restart(plain_server: Slapd) -> None:
    store = _open(plain_server.uri)
    bell = Bell()
    with store.watch(SUFFIX, ASKED, bell) as watcher:
        assert bell.wait_beyond(0)
        plain_server.kill()
        until("the watch to notice", lambda: not watcher.alive(), 3)
        heard = len(bell.rung)
        plain_server.start()
        assert bell.wait_beyond(heard, 10)
        assert watcher.kind == "poll"
    store.close()


# the protocol's bytes


@pytest.mark.parametrize(
    ("info", "ends", "only_cookie"),
    [
        ("8003616263", False, True),  # newcookie
        ("a100", True, False),  # refreshDelete, refreshDone by default
        ("a105 0403616263", True, False),  # with a cookie
        ("a108 0403616263 0101ff", True, False),
        ("a203 010100", False, False),  # refreshPresent, more to come
        ("a200", True, False),
        ("a303 040161", False, False),  # syncIdSet
        ("", False, False),
    ],
)
def test_sync_info_is_understood(info: str, ends: bool, only_cookie: bool) -> None:
    assert ends_refresh(bytes.fromhex(info)) is ends
    assert is_cookie_only(bytes.fromhex(info)) is only_cookie


@pytest.mark.parametrize("broken", ["a2", "a205", "a20301", "a2 83 010100"])
def test_broken_sync_info_is_an_error_and_not_an_endless_loop(broken: str) -> None:
    with pytest.raises(ValueError, match="BER"):
        ends_refresh(bytes.fromhex(broken))
