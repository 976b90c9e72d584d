"""Claims: one wins, and the loser writes nothing, on a real server and in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.slapd.conformance.entries import add_leaf, names_of
from vmkeep.contract.errors import Refused
from vmkeep.contract.names import Attribute
from vmkeep.directory.port import AllOf, AtLeast, Claim, Equals, Not, Present, Store


def test_a_claim_is_won_once_and_then_lost(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    changes = {Attribute.MODE: ("snapshotting",), Attribute.RETURN_VALUE: ("0",)}
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, changes) is Claim.WON
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, changes) is Claim.LOST
    entry = store.read(dn)
    assert entry is not None
    assert (entry.first(Attribute.MODE), entry.first(Attribute.RETURN_VALUE)) == ("snapshotting", "0")


def test_a_lost_claim_writes_nothing(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    before = store.read(dn)
    changes = {Attribute.MODE: ("merging",), Attribute.STATE: ("x",), Attribute.MESSAGE: ()}
    assert (
        store.claim(dn, {Attribute.MODE: "merge"}, changes, {Attribute.EXECUTION_TIME: ("snapshot: 1",)}) is Claim.LOST
    )
    assert store.read(dn) == before


def test_every_expected_value_must_be_there(store: Store, base: str) -> None:
    dn = add_leaf(store, base, "snapshot", "0")
    expected = {Attribute.MODE: "snapshot", Attribute.STATE: "20260101T000000Z"}
    assert store.claim(dn, expected, {Attribute.MODE: ("snapshotting",)}) is Claim.LOST
    assert store.claim(dn, {**expected, Attribute.STATE: "0"}, {Attribute.MODE: ("snapshotting",)}) is Claim.WON


def test_an_expected_attribute_that_is_missing_loses(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    assert store.claim(dn, {Attribute.RETURN_VALUE: "0"}, {Attribute.MODE: ("merge",)}) is Claim.LOST


def test_an_expected_value_that_is_not_changed_stays(store: Store, base: str) -> None:
    dn = add_leaf(store, base, "merging")
    progress = {Attribute.RETURN_VALUE: ("0",)}
    assert store.claim(dn, {Attribute.MODE: "merging", Attribute.STATE: "0"}, progress) is Claim.WON
    entry = store.read(dn)
    assert entry is not None
    assert (entry.all(Attribute.MODE), entry.all(Attribute.STATE)) == (("merging",), ("0",))


def test_a_claim_expects_without_looking_at_case(store: Store, base: str) -> None:
    dn = add_leaf(store, base, "SNAPSHOT")
    assert store.claim(dn, {"sstprovisioningmode": "snapshot"}, {Attribute.MODE: ("snapshotting",)}) is Claim.WON


def test_an_empty_sequence_removes_an_attribute_that_may_be_absent(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    changes = {Attribute.EXECUTION_TIME: ("snapshot: 1.0", "downtime: 0.2"), Attribute.RETURN_VALUE: ()}
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, changes) is Claim.WON
    assert store.claim(dn, {Attribute.MODE: "snapshot"}, {Attribute.EXECUTION_TIME: ()}) is Claim.WON
    entry = store.read(dn)
    assert entry is not None
    assert entry.all(Attribute.EXECUTION_TIME) == ()


def test_additions_stand_beside_what_was_there(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    for what in ("snapshot: 1.0", "merge: 2.0"):
        won = store.claim(dn, {Attribute.STATE: "0"}, {}, {Attribute.EXECUTION_TIME: (what,)})
        assert won is Claim.WON
    entry = store.read(dn)
    assert entry is not None
    assert sorted(entry.all(Attribute.EXECUTION_TIME)) == ["merge: 2.0", "snapshot: 1.0"]


def test_an_addition_that_is_there_already_does_not_lose_the_claim(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
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
    dn = add_leaf(store, above, name=f"20260101T0000{epoch:02}Z")
    assert store.claim(dn, {}, {Attribute.EPOCH: (str(epoch),)}, {"objectClass": ("vmkeepLeaf",)}) is Claim.WON
    return dn


def test_numbers_are_compared_as_numbers_and_what_has_none_is_not_at_least_any(store: Store, base: str) -> None:
    nine, ten = _marked(store, base, 9), _marked(store, base, 10)
    bare = add_leaf(store, base)
    assert names_of(store, base, AtLeast(Attribute.EPOCH, 10)) == {ten}
    assert names_of(store, base, AtLeast(Attribute.EPOCH, -1)) == {nine, ten}
    assert names_of(store, base, AllOf((Present(Attribute.MODE), Not(AtLeast(Attribute.EPOCH, 10))))) == {nine, bare}
    assert names_of(store, base, Not(Present(Attribute.MODE))) == {base}


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
    dn = add_leaf(store, base)
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
    dn = add_leaf(store, base, "m0", name="fight")
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
