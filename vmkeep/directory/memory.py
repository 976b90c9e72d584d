"""The store's twin without a server, for tests of what stands above it; passes the same conformance suite.

Knows the equality rules that matter (`equality`); knows no schema and no access rules.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.claims import shows
from vmkeep.directory.equality import NormalDN, has_equality, normal_dn, normal_value, rdn_values
from vmkeep.directory.errors import Unreachable
from vmkeep.directory.matching import matches, meets
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter, Scope, Watcher


class MemoryStore:
    """A Store in memory; safe for threads. `suffix` exists from the start, as a directory's top entry does."""

    def __init__(self, suffix: str = "dc=example,dc=org") -> None:
        self._lock = threading.RLock()
        self._entries: dict[NormalDN, Entry] = {normal_dn(suffix): Entry(suffix, {"objectClass": ("top", "dcObject")})}
        self._watchers: list[MemoryWatcher] = []
        self._away = False

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        """See Store."""
        with self._answering():
            entry = self._entries.get(normal_dn(dn))
            return _only(entry, attributes) if entry else None

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        """See Store. Shows the instant at which the first entry is taken."""
        with self._answering():
            found = [
                _only(entry, attributes)
                for dn, entry in self._entries.items()
                if _is_within(dn, normal_dn(base), scope) and matches(entry, matching)
            ]
        yield from found

    def add(self, dn: str, attributes: Attributes) -> bool:
        """See Store."""
        with self._answering():
            key = normal_dn(dn)
            if key in self._entries:
                return False
            if key[1:] not in self._entries:
                raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: the entry above it does not exist")
            self._put(key, _named(Entry(dn, _frozen(attributes))))
            return True

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        """See Store."""
        with self._answering():
            key = normal_dn(dn)
            entry = self._entries.get(key)
            unfit = next((name for name in expected if not has_equality(name)), None)
            if unfit:
                raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: {unfit} has no equality rule to expect by")
            if entry is None or not meets(entry, provided):
                return Claim.LOST
            if not shows(entry, {name: (value,) for name, value in expected.items()}):
                return Claim.LOST
            self._put(key, _with_more(_changed(entry, changes), additions or {}))
            return Claim.WON

    def replace(self, dn: str, changes: Attributes) -> bool:
        """See Store."""
        with self._answering():
            key = normal_dn(dn)
            entry = self._entries.get(key)
            if entry is None:
                return False
            self._put(key, _changed(entry, changes))
            return True

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        """See Store."""
        with self._answering():
            key = normal_dn(dn)
            entry = self._entries.get(key)
            if entry is None or not meets(entry, provided):
                return False
            if any(_is_within(other, key, Scope.CHILDREN) for other in self._entries):
                raise Refused(ReturnValue.CANNOT_CONNECT_TO_BACKEND, f"{dn}: there are entries below it")
            del self._entries[key]
            self._tell(key, entry, None)
            return True

    def watch(
        self,
        base: str,
        matching: Filter,
        wake: Callable[[], None],
        *,
        polls: bool = True,  # noqa: ARG002 - this one notifies
    ) -> "MemoryWatcher":
        """See Store."""
        watcher = MemoryWatcher(normal_dn(base), matching, wake)
        with self._lock:
            self._watchers.append(watcher)
        watcher.notice()
        return watcher

    def close(self) -> None:
        """See Store."""

    def go_away(self) -> None:
        """From now on every call raises Unreachable, as when the server is stopped."""
        with self._lock:
            self._away = True
            for watcher in self._watchers:
                watcher.interrupt()

    def come_back(self) -> None:
        """Answer again, and wake every watch."""
        with self._lock:
            self._away = False
            for watcher in self._watchers:
                watcher.notice()

    def _answering(self) -> threading.RLock:
        if self._away:
            raise Unreachable("the directory in memory was told to be away")
        return self._lock

    def _put(self, key: NormalDN, entry: Entry) -> None:
        before = self._entries.get(key)
        self._entries[key] = entry
        self._tell(key, before, entry)

    def _tell(self, key: NormalDN, before: Entry | None, after: Entry | None) -> None:
        for watcher in self._watchers:
            if watcher.concerns(key, before, after):
                watcher.notice()


class MemoryWatcher:
    """A Watcher with a thread of its own, so that `wake` never runs under the store's lock."""

    kind = "sync"

    def __init__(self, base: NormalDN, matching: Filter, wake: Callable[[], None]) -> None:
        self._base = base
        self._matching = matching
        self._wake = wake
        self._noticed = threading.Event()
        self._has_told = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="watch-memory", daemon=True)
        self._thread.start()

    def concerns(self, key: NormalDN, before: Entry | None, after: Entry | None) -> bool:
        """Whether a change is one of this watch's entries, also one that enters or leaves."""
        return _is_within(key, self._base, Scope.SUBTREE) and any(
            entry is not None and matches(entry, self._matching) for entry in (before, after)
        )

    def notice(self) -> None:
        """Wake the owner soon."""
        self._noticed.set()

    def alive(self) -> bool:
        """See Watcher."""
        return self._has_told and self._thread.is_alive()

    def interrupt(self) -> None:
        """Not alive until the owner was woken again."""
        self._has_told = False

    def close(self) -> None:
        """See Watcher."""
        self._closing = True
        self._noticed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing:
            self._noticed.wait()
            self._noticed.clear()
            if not self._closing:
                self._wake()
                self._has_told = True


def _is_within(dn: NormalDN, base: NormalDN, scope: Scope) -> bool:
    depth = len(dn) - len(base)
    if depth < 0 or dn[depth:] != base:
        return False
    return {Scope.BASE: depth == 0, Scope.CHILDREN: depth == 1, Scope.SUBTREE: True}[scope]


def _only(entry: Entry, attributes: Sequence[str]) -> Entry:
    wanted = {name.casefold() for name in attributes}
    if not wanted or "*" in wanted:
        return entry
    return Entry(entry.dn, {name: values for name, values in entry.attributes.items() if name.casefold() in wanted})


def _frozen(attributes: Attributes) -> dict[str, tuple[str, ...]]:
    return {str(name): tuple(str(value) for value in values) for name, values in attributes.items() if values}


def _named(entry: Entry) -> Entry:
    """The entry with the values of its own name, which a server adds."""
    return _with_more(entry, {name: (value,) for name, value in rdn_values(entry.dn)})


def _changed(entry: Entry, changes: Attributes) -> Entry:
    gone = {name.casefold() for name in changes}
    kept = {name: values for name, values in entry.attributes.items() if name.casefold() not in gone}
    return Entry(entry.dn, {**kept, **_frozen(changes)})


def _with_more(entry: Entry, additions: Attributes) -> Entry:
    for name, values in additions.items():
        held = entry.all(name)
        present = {normal_value(name, value) for value in held}
        new = tuple(str(value) for value in values if normal_value(name, value) not in present)
        entry = _changed(entry, {name: (*held, *new)}) if new else entry
    return entry
