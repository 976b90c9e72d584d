"""One suite for the store and its twin: what passes here may be relied on by everything above the directory."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab.waiting import until
from tests.slapd.small_directory import PLAIN, ROOT_ENTRY, SUFFIX
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Attribute, escape_rdn
from vmkeep.directory import open_store
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import (
    ANYTHING,
    AllOf,
    AnyOf,
    AtLeast,
    Claim,
    Equals,
    Filter,
    Not,
    Present,
    Scope,
    Store,
)
from vmkeep.directory.settings import DirectorySettings

PAGE = 7
_numbers = count()


@dataclass(frozen=True)
class Bench:
    """A store, and how to take its server away and bring it back."""

    store: Store
    go_away: Callable[[], None]
    come_back: Callable[[], None]


@pytest.fixture(scope="module", params=["memory", "openldap"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        twin = MemoryStore(SUFFIX)
        yield Bench(twin, twin.go_away, twin.come_back)
        return
    server = request.getfixturevalue("slapd_factory")(PLAIN)
    server.add(ROOT_ENTRY)
    store = open_store(DirectorySettings(uri=server.uri, suffix=SUFFIX, timeout_seconds=5, page_size=PAGE))
    yield Bench(store, server.kill, server.start)
    store.close()


@pytest.fixture
def store(bench: Bench) -> Store:
    return bench.store


@pytest.fixture
def base(store: Store) -> str:
    """A fresh subtree for one test."""
    return _unit(store, f"test-{next(_numbers)}", SUFFIX)


def _unit(store: Store, name: str, above: str) -> str:
    dn = f"ou={escape_rdn(name)},{above}"
    assert store.add(dn, {"objectClass": ("top", "organizationalUnit"), "ou": (name,)})
    return dn


def _leaf(store: Store, above: str, mode: str = "snapshot", state: str = "0", name: str = "20260101T000000Z") -> str:
    dn = f"ou={name},{above}"
    classes = ("top", "organizationalUnit", "sstProvisioning")
    attributes = {"objectClass": classes, "ou": (name,), Attribute.MODE: (mode,), Attribute.STATE: (state,)}
    assert store.add(dn, {**attributes, Attribute.EXECUTION_DATE: ("0",)})
    return dn


def _names(store: Store, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE) -> set[str]:
    return {entry.dn for entry in store.search(base, matching, scope)}


# reading


def test_an_entry_reads_back_as_it_was_added(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    entry = store.read(dn)
    assert entry is not None
    assert entry.dn == dn
    assert entry.first("SSTPROVISIONINGMODE") == "snapshot"
    assert entry.all("objectClass") == ("top", "organizationalUnit", "sstProvisioning")
    assert entry.has_class("SSTprovisioning")


def test_an_entry_that_is_not_there_reads_as_none(store: Store, base: str) -> None:
    assert store.read(f"ou=nobody,{base}") is None


def test_only_the_attributes_asked_for_are_read(store: Store, base: str) -> None:
    entry = store.read(_leaf(store, base), (Attribute.MODE, "OU"))
    assert entry is not None
    assert {name.casefold() for name in entry.attributes} == {"sstprovisioningmode", "ou"}


def test_a_dn_reads_in_any_spelling(store: Store, base: str) -> None:
    _leaf(store, base)
    assert store.read(f"OU=20260101t000000z, {base.upper()}") is not None


def test_each_scope_looks_just_as_far_as_it_says(store: Store, base: str) -> None:
    child = _unit(store, "child", base)
    grandchild = _unit(store, "grandchild", child)
    assert _names(store, base, scope=Scope.BASE) == {base}
    assert _names(store, base, scope=Scope.CHILDREN) == {child}
    assert _names(store, base, scope=Scope.SUBTREE) == {base, child, grandchild}


def test_a_base_that_is_not_there_has_nothing_below_it(store: Store, base: str) -> None:
    assert _names(store, f"ou=nobody,{base}") == set()


def test_more_entries_than_a_page_are_all_found_once(store: Store, base: str) -> None:
    dns = [_unit(store, f"unit {number}", base) for number in range(3 * PAGE + 1)]
    found = [entry.dn for entry in store.search(base, scope=Scope.CHILDREN)]
    assert sorted(found) == sorted(dns)


def test_other_calls_between_two_pages_do_not_disturb_a_search(store: Store, base: str) -> None:
    dns = {_unit(store, f"unit {number}", base) for number in range(3 * PAGE)}
    found = set()
    for entry in store.search(base, scope=Scope.CHILDREN):
        assert store.read(base) is not None
        assert _names(store, base, scope=Scope.BASE) == {base}
        found.add(entry.dn)
    assert found == dns


def test_a_search_may_be_left_halfway(store: Store, base: str) -> None:
    for number in range(2 * PAGE):
        _unit(store, f"unit {number}", base)
    for _ in range(20):
        assert next(iter(store.search(base))) is not None
    assert store.read(base) is not None


# filters


def test_a_mode_matches_whatever_its_case(store: Store, base: str) -> None:
    dn = _leaf(store, base, mode="unretainSmallFiles")
    assert _names(store, base, Equals(Attribute.MODE, "UNRETAINSMALLFILES")) == {dn}


def test_filters_combine(store: Store, base: str) -> None:
    first = _leaf(store, base, "snapshot", "0", "20260101T000000Z")
    second = _leaf(store, base, "merge", "0", "20260102T000000Z")
    third = _leaf(store, base, "snapshot", "20260101T000000Z", "20260103T000000Z")
    snapshot, started = Equals(Attribute.MODE, "snapshot"), Equals(Attribute.STATE, "0")
    assert _names(store, base, AllOf((snapshot, started))) == {first}
    assert _names(store, base, AnyOf((snapshot, started))) == {first, second, third}
    assert _names(store, base, Present(Attribute.MODE)) == {first, second, third}
    assert _names(store, base, Present(Attribute.RETURN_VALUE)) == set()


def test_all_of_nothing_is_everything_and_any_of_nothing_is_nothing(store: Store, base: str) -> None:
    assert _names(store, base, AllOf(())) == {base}
    assert _names(store, base, AnyOf(())) == set()


def test_attributes_without_an_equality_rule_match_no_filter(store: Store, base: str) -> None:
    plan = f"ou=backup,{base}"
    classes = ("top", "organizationalUnit", "sstVirtualizationBackupObjectClass")
    store.add(plan, {"objectClass": classes, "ou": ("backup",), Attribute.EXCLUDE: ("TRUE",)})
    assert _names(store, base, Equals(Attribute.EXCLUDE, "TRUE")) == set()
    assert _names(store, base, Present(Attribute.EXCLUDE)) == {plan}


ODD_VALUES = [
    "*",
    "(",
    ")",
    "\\",
    "a*",
    "a)(ou=*",
    "\\2a",
    "a\\",
    "#x",
    " a",
    "a ",
    "a  b",
    "ä",
    "Ä",
    "a\u0308",
    "😀",
    "a\tb",
    "\\00",
]
values = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co", "Cf", "Mn", "Zl", "Zp", "Zs"]), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
@example("*")
@example("a)(ou=*")
@example("\\2a")
@example("x\\")
def test_a_value_finds_exactly_the_entry_that_carries_it(store: Store, value: str) -> None:
    base = _unit(store, f"odd {next(_numbers)}", SUFFIX)
    dn = f"ou=carrier,{base}"
    store.add(dn, {"objectClass": ("organizationalUnit",), "ou": ("carrier",), "description": (f"<{value}>",)})
    assert _names(store, base, Equals("description", f"<{value}>")) == {dn}
    assert _names(store, base, Equals("description", f"<{value}")) == set()


def test_odd_values_are_told_apart(store: Store, base: str) -> None:
    for number, value in enumerate(ODD_VALUES):
        dn = f"ou={number},{base}"
        store.add(dn, {"objectClass": ("organizationalUnit",), "ou": (str(number),), "description": (f"<{value}>",)})
    same = [{"ä", "Ä", "a\u0308"}]
    for number, value in enumerate(ODD_VALUES):
        twins = next((group for group in same if value in group), {value})
        wanted = {f"ou={other},{base}" for other, known in enumerate(ODD_VALUES) if known in twins}
        assert _names(store, base, Equals("description", f"<{value}>")) == wanted, (number, value)


# adding and deleting


def test_adding_an_entry_twice_says_so_and_changes_nothing(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    assert not store.add(dn, {"objectClass": ("organizationalUnit",), "ou": ("other",)})
    entry = store.read(dn)
    assert entry is not None
    assert entry.first(Attribute.MODE) == "snapshot"


def test_an_entry_below_nothing_is_refused(store: Store, base: str) -> None:
    with pytest.raises(Refused, match="ou=nobody"):
        store.add(f"ou=x,ou=nobody,{base}", {"objectClass": ("organizationalUnit",), "ou": ("x",)})


@pytest.mark.parametrize(
    "name",
    [
        "a,b",
        "a+b",
        'a"b',
        "a\\b",
        "a;b",
        "a<b>c",
        "a=b",
        "#a",
        " a",
        "a ",
        "für Größe",
        "日本",
        "a/b",
        "ou=x,dc=y",
        "a*(b)",
    ],
)
def test_a_name_with_special_characters_is_added_read_found_and_deleted(store: Store, base: str, name: str) -> None:
    dn = _unit(store, name, base)
    entry = store.read(dn)
    assert entry is not None
    assert entry.first("ou") == name
    [found] = store.search(base, Equals("ou", name))
    assert store.read(found.dn) == entry
    child = _unit(store, "child", dn)
    assert len(_names(store, base, Equals("ou", "child"))) == 1
    assert store.delete(child)
    assert store.delete(found.dn)
    assert store.read(dn) is None


def test_deleting_says_whether_there_was_something(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    assert store.delete(dn)
    assert not store.delete(dn)


def test_an_entry_with_others_below_is_not_deleted(store: Store, base: str) -> None:
    _leaf(store, base)
    with pytest.raises(Refused, match=base):
        store.delete(base)


# claims


def test_a_claim_is_won_once_and_then_lost(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    changes = {Attribute.MODE: ("snapshotting",), Attribute.RETURN_VALUE: ("0",)}
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, changes) is Claim.WON
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, changes) is Claim.LOST
    entry = store.read(dn)
    assert entry is not None
    assert (entry.first(Attribute.MODE), entry.first(Attribute.RETURN_VALUE)) == ("snapshotting", "0")


def test_a_lost_claim_writes_nothing(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    before = store.read(dn)
    changes = {Attribute.MODE: ("merging",), Attribute.STATE: ("x",), Attribute.MESSAGE: ()}
    assert (
        store.claim(dn, {Attribute.MODE: "merge"}, changes, {Attribute.EXECUTION_TIME: ("snapshot: 1",)}) is Claim.LOST
    )
    assert store.read(dn) == before


def test_every_expected_value_must_be_there(store: Store, base: str) -> None:
    dn = _leaf(store, base, "snapshot", "0")
    expected = {Attribute.MODE: "snapshot", Attribute.STATE: "20260101T000000Z"}
    assert store.claim(dn, expected, {Attribute.MODE: ("snapshotting",)}) is Claim.LOST
    assert store.claim(dn, {**expected, Attribute.STATE: "0"}, {Attribute.MODE: ("snapshotting",)}) is Claim.WON


def test_an_expected_attribute_that_is_missing_loses(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    assert store.claim(dn, {Attribute.RETURN_VALUE: "0"}, {Attribute.MODE: ("merge",)}) is Claim.LOST


def test_an_expected_value_that_is_not_changed_stays(store: Store, base: str) -> None:
    dn = _leaf(store, base, "merging")
    progress = {Attribute.RETURN_VALUE: ("0",)}
    assert store.claim(dn, {Attribute.MODE: "merging", Attribute.STATE: "0"}, progress) is Claim.WON
    entry = store.read(dn)
    assert entry is not None
    assert (entry.all(Attribute.MODE), entry.all(Attribute.STATE)) == (("merging",), ("0",))


def test_a_claim_expects_without_looking_at_case(store: Store, base: str) -> None:
    dn = _leaf(store, base, "SNAPSHOT")
    assert store.claim(dn, {"sstprovisioningmode": "snapshot"}, {Attribute.MODE: ("snapshotting",)}) is Claim.WON


def test_an_empty_sequence_removes_an_attribute_that_may_be_absent(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    changes = {Attribute.EXECUTION_TIME: ("snapshot: 1.0", "downtime: 0.2"), Attribute.RETURN_VALUE: ()}
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, changes) is Claim.WON
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, {Attribute.EXECUTION_TIME: ()}) is Claim.WON
    entry = store.read(dn)
    assert entry is not None
    assert entry.all(Attribute.EXECUTION_TIME) == ()


def test_additions_stand_beside_what_was_there(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    for what in ("snapshot: 1.0", "merge: 2.0"):
        won = store.claim(dn, {Attribute.STATE: "0"}, {}, {Attribute.EXECUTION_TIME: (what,)})
        assert won is Claim.WON
    entry = store.read(dn)
    assert entry is not None
    assert sorted(entry.all(Attribute.EXECUTION_TIME)) == ["merge: 2.0", "snapshot: 1.0"]


def test_an_addition_that_is_there_already_does_not_lose_the_claim(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    additions = {"objectClass": ("vmkeepLeaf",), Attribute.EXECUTION_TIME: ("snapshot: 1.0",)}
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("snapshotting",)}, additions) is Claim.WON
    more = {"objectClass": ("VMKEEPleaf",), Attribute.EXECUTION_TIME: ("snapshot: 1.0", "merge: 2.0")}
    changes = {Attribute.MODE: ("snapshotted",), Attribute.MESSAGE: ("all is well",)}
    assert store.claim(dn, {Attribute.MODE: "snapshotting"}, changes, more) is Claim.WON
    assert store.claim(dn, {Attribute.MODE: "snapshotting"}, changes, more) is Claim.LOST
    entry = store.read(dn)
    assert entry is not None
    assert sorted(entry.all(Attribute.EXECUTION_TIME)) == ["merge: 2.0", "snapshot: 1.0"]
    assert (entry.first(Attribute.MODE), entry.first(Attribute.MESSAGE)) == ("snapshotted", "all is well")


def test_a_claim_on_an_entry_that_is_gone_is_lost(store: Store, base: str) -> None:
    assert store.claim(f"ou=gone,{base}", {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("merge",)}) is Claim.LOST


def test_expecting_an_attribute_without_an_equality_rule_is_refused(store: Store, base: str) -> None:
    plan = f"ou=backup,{base}"
    classes = ("top", "organizationalUnit", "sstVirtualizationBackupObjectClass")
    store.add(plan, {"objectClass": classes, "ou": ("backup",), Attribute.EXCLUDE: ("TRUE",)})
    with pytest.raises(Refused, match=plan):
        store.claim(plan, {Attribute.EXCLUDE: "TRUE"}, {Attribute.EXCLUDE: ("FALSE",)})


def _marked(store: Store, above: str, epoch: int) -> str:
    dn = _leaf(store, above, name=f"20260101T0000{epoch:02}Z")
    assert store.claim(dn, {}, {Attribute.EPOCH: (str(epoch),)}, {"objectClass": ("vmkeepLeaf",)}) is Claim.WON
    return dn


def test_numbers_are_compared_as_numbers_and_what_has_none_is_not_at_least_any(store: Store, base: str) -> None:
    nine, ten = _marked(store, base, 9), _marked(store, base, 10)
    bare = _leaf(store, base)
    assert _names(store, base, AtLeast(Attribute.EPOCH, 10)) == {ten}
    assert _names(store, base, AtLeast(Attribute.EPOCH, -1)) == {nine, ten}
    assert _names(store, base, AllOf((Present(Attribute.MODE), Not(AtLeast(Attribute.EPOCH, 10))))) == {nine, bare}
    assert _names(store, base, Not(Present(Attribute.MODE))) == {base}


def test_a_claim_is_lost_where_the_entry_does_not_match_what_was_provided(store: Store, base: str) -> None:
    dn = _marked(store, base, 7)
    before = store.read(dn)
    expected, changes = {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("snapshotting",)}
    additions = {"objectClass": ("vmkeepLeaf",)}
    too_late = Not(AtLeast(Attribute.EPOCH, 7))
    assert store.claim(dn, expected, changes, additions, provided=too_late) is Claim.LOST
    assert store.claim(dn, {}, changes, provided=too_late) is Claim.LOST
    assert store.read(dn) == before
    in_time = Not(AtLeast(Attribute.EPOCH, 8))
    assert store.claim(dn, expected, changes, additions, provided=in_time) is Claim.WON
    assert store.claim(f"ou=gone,{base}", {}, changes, provided=in_time) is Claim.LOST


def test_what_lacks_the_attribute_is_of_no_later_epoch(store: Store, base: str) -> None:
    dn = _leaf(store, base)
    provided = Not(AtLeast(Attribute.EPOCH, 1))
    marked = {Attribute.EPOCH: ("1",)}, {"objectClass": ("vmkeepLeaf",)}
    assert store.claim(dn, {Attribute.STATE: "0"}, *marked, provided=provided) is Claim.WON
    assert store.claim(dn, {Attribute.STATE: "0"}, *marked, provided=provided) is Claim.LOST


def test_an_entry_that_does_not_match_what_was_provided_is_not_deleted(store: Store, base: str) -> None:
    dn = _marked(store, base, 7)
    assert not store.delete(dn, Not(AtLeast(Attribute.EPOCH, 7)))
    assert not store.delete(dn, AllOf((Equals(Attribute.MODE, "merge"), Not(AtLeast(Attribute.EPOCH, 8)))))
    assert store.read(dn) is not None
    assert store.delete(dn, AllOf((Equals(Attribute.MODE, "SNAPSHOT"), Not(AtLeast(Attribute.EPOCH, 8)))))
    assert store.read(dn) is None
    assert not store.delete(dn, Not(AtLeast(Attribute.EPOCH, 8)))


@pytest.mark.parametrize("value", ["a)(ou=*", "\\2a", "*", "ä", "(!(x=y))"])
def test_what_is_provided_may_hold_any_value(store: Store, base: str, value: str) -> None:
    dn = f"ou=odd,{base}"
    store.add(dn, {"objectClass": ("organizationalUnit",), "ou": ("odd",), "description": (value,)})
    assert store.claim(dn, {}, {"description": (value,)}, provided=Equals("description", f"{value}x")) is Claim.LOST
    assert store.claim(dn, {}, {"description": (value,)}, provided=Equals("description", value)) is Claim.WON


def test_of_eight_who_claim_at_once_exactly_one_wins(store: Store, base: str) -> None:
    rounds, fighters = 100, 8
    dn = _leaf(store, base, "m0", name="fight")
    barrier = threading.Barrier(fighters)

    def fight(_: int) -> list[Claim]:
        outcomes = []
        for number in range(rounds):
            barrier.wait(30)
            outcomes.append(store.claim(dn, {Attribute.MODE: f"m{number}"}, {Attribute.MODE: (f"m{number + 1}",)}))
        return outcomes

    with ThreadPoolExecutor(fighters) as threads:
        all_outcomes = list(threads.map(fight, range(fighters)))
    winners = [sum(outcomes[number] is Claim.WON for outcomes in all_outcomes) for number in range(rounds)]
    assert winners == [1] * rounds


# replacing


def test_replace_sets_also_what_has_no_equality_rule(store: Store, base: str) -> None:
    plan = f"ou=backup,{base}"
    classes = ("top", "organizationalUnit", "sstVirtualizationBackupObjectClass", "sstCronObjectClass")
    cron = dict.fromkeys((Attribute.CRON_HOUR, Attribute.CRON_DAY, Attribute.CRON_MONTH), ("*",))
    fields = {
        **cron,
        Attribute.CRON_MINUTE: ("5",),
        Attribute.CRON_DAY_OF_WEEK: ("*",),
        Attribute.CRON_ACTIVE: ("TRUE",),
    }
    store.add(plan, {"objectClass": classes, "ou": ("backup",), **fields})
    assert store.replace(plan, {Attribute.EXCLUDE: ("TRUE",), Attribute.CRON_MINUTE: ("10",)})
    assert store.replace(plan, {Attribute.EXCLUDE: ("FALSE",)})
    entry = store.read(plan)
    assert entry is not None
    assert (entry.all(Attribute.EXCLUDE), entry.all(Attribute.CRON_MINUTE)) == (("FALSE",), ("10",))
    assert store.replace(plan, {Attribute.EXCLUDE: ()})
    assert store.read(plan, (Attribute.EXCLUDE,)) is not None
    assert _names(store, base, Present(Attribute.EXCLUDE)) == set()


def test_replacing_in_an_entry_that_is_gone_says_so(store: Store, base: str) -> None:
    assert not store.replace(f"ou=gone,{base}", {"description": ("x",)})


# watching


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
        assert watcher.alive()
        assert watcher.kind == "sync"
        yield ringing


def test_a_watch_wakes_for_what_is_added_changed_entered_left_and_deleted(
    store: Store, base: str, alarm: Alarm
) -> None:
    leaf = _leaf(store, base, "snapshot", "x")
    assert alarm.is_quiet()
    assert alarm.rings_after(lambda: _leaf(store, base, "snapshot", "0", "20260102T000000Z"))
    assert alarm.rings_after(lambda: store.claim(leaf, {Attribute.STATE: "x"}, {Attribute.STATE: ("0",)}))
    assert alarm.rings_after(lambda: store.claim(leaf, {Attribute.MODE: "snapshot"}, {Attribute.MODE: ("merge",)}))
    assert alarm.rings_after(lambda: store.claim(leaf, {Attribute.STATE: "0"}, {Attribute.STATE: ("x",)}))
    assert alarm.is_quiet()
    assert alarm.rings_after(lambda: store.delete(f"ou=20260102T000000Z,{base}"))


def test_a_watch_is_not_woken_by_others(store: Store, base: str, alarm: Alarm) -> None:
    elsewhere = _unit(store, f"elsewhere {next(_numbers)}", SUFFIX)
    _leaf(store, elsewhere)
    _unit(store, "no leaf", base)
    assert alarm.is_quiet()


def test_a_closed_watch_wakes_nobody(store: Store, base: str) -> None:
    ringing = Alarm()
    watcher = store.watch(base, ANYTHING, ringing)
    until("the first wake-up", lambda: ringing.count, 5)
    began = time.monotonic()
    watcher.close()
    assert time.monotonic() - began < 15
    assert not watcher.alive()
    _leaf(store, base)
    assert ringing.is_quiet()


def test_while_the_server_is_away_everything_says_try_later_and_then_all_goes_on(bench: Bench) -> None:
    store = bench.store
    base = _unit(store, f"away {next(_numbers)}", SUFFIX)
    dn = _leaf(store, base)
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
