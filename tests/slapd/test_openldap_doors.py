"""What only a real server can do to us: vanish, hang, fill up, refuse, or lose an answer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.slapd import Slapd
from tests.conftest import SlapdFactory
from tests.slapd.small_directory import DATABASE, PLAIN, ROOT_ENTRY, SUFFIX, populate, settings
from tests.slapd.unreliable_wire import ADD, DELETE, MODIFY, UnreliableWire
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Attribute
from vmkeep.directory import open_store
from vmkeep.directory.errors import Full, Unreachable, Unwilling
from vmkeep.directory.port import AtLeast, Claim, Equals, Not, Store

LEAF = f"ou=leaf,{SUFFIX}"


@pytest.fixture(scope="module")
def server(slapd_factory: SlapdFactory) -> Slapd:
    server = slapd_factory(PLAIN)
    populate(server)
    return server


@pytest.fixture
def store(server: Slapd) -> Iterator[Store]:
    store = open_store(settings(server))
    yield store
    store.close()


@pytest.fixture
def leaf(store: Store) -> Iterator[str]:
    _add_leaf(store)
    yield LEAF
    store.delete(LEAF)


def _add_leaf(store: Store) -> bool:
    classes = ("organizationalUnit", "sstProvisioning")
    modes = {Attribute.MODE: ("snapshot",), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
    return store.add(LEAF, {"objectClass": classes, "ou": ("leaf",), **modes})


def _claim(store: Store, expected: str = "snapshot", new: str = "snapshotting") -> Claim:
    return store.claim(LEAF, {Attribute.MODE: expected}, {Attribute.MODE: (new,), Attribute.RETURN_VALUE: ("0",)})


# the server's troubles


def test_a_server_that_is_killed_between_two_claims_is_unreachable_and_then_served_again(
    server: Slapd, store: Store, leaf: str
) -> None:
    server.kill()
    try:
        with pytest.raises(Unreachable, match="cannot reach the directory ldapi"):
            _claim(store)
    finally:
        server.start()
    assert _claim(store) is Claim.WON


def test_a_server_that_hangs_is_given_up_within_the_time_limit(server: Slapd, store: Store, leaf: str) -> None:
    store.read(leaf)
    server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(TryLater):
            store.read(leaf)
        read_took, began = time.monotonic() - began, time.monotonic()
        with pytest.raises(TryLater):
            _claim(store)
        claim_took = time.monotonic() - began
    finally:
        server.unpause()
    assert read_took < 10
    assert claim_took < 15  # the answer, and once more for looking it up
    assert store.read(leaf) is not None


def test_a_server_that_hangs_over_a_claim_and_goes_on_gives_the_true_outcome(
    server: Slapd, store: Store, leaf: str
) -> None:
    store.read(leaf)
    server.pause()
    going_on = threading.Timer(1.3, server.unpause)
    going_on.start()
    assert _claim(store) is Claim.WON
    going_on.join()
    assert _claim(store) is Claim.LOST


def test_a_read_only_server_says_try_later_with_its_own_words(server: Slapd, store: Store, leaf: str) -> None:
    server.modify(f"{DATABASE}replace: olcReadOnly\nolcReadOnly: TRUE\n")
    try:
        with pytest.raises(Unwilling, match=rf"{leaf}.*operation restricted.*tried again"):
            _claim(store)
        assert store.read(leaf) is not None
    finally:
        server.modify(f"{DATABASE}replace: olcReadOnly\nolcReadOnly: FALSE\n")
    assert _claim(store) is Claim.WON


def test_a_full_database_says_try_later_and_reads_go_on(slapd_factory: SlapdFactory) -> None:
    server = slapd_factory(PLAIN)
    server.add(ROOT_ENTRY)
    server.modify(f"{DATABASE}replace: olcDbMaxSize\nolcDbMaxSize: 262144\n")
    server.stop()
    server.start()
    store = open_store(settings(server))
    with pytest.raises(Full, match=r"is full: look at olcDbMaxSize.*tried again"):
        for number in range(200):
            padding = {"objectClass": ("organizationalUnit",), "description": (f"{number}" * 2000,)}
            store.add(f"ou={number},{SUFFIX}", {**padding, "ou": (str(number),)})
    assert store.read(f"ou=0,{SUFFIX}") is not None
    store.close()
    server.stop()


def test_no_means_refused_with_the_servers_words_and_the_dn(store: Store, leaf: str) -> None:
    with pytest.raises(Refused, match=f"{leaf}.*invalidAttributeSyntax"):
        store.replace(leaf, {Attribute.RETURN_VALUE: ("007",)})
    with pytest.raises(Refused, match=f"{leaf}.*objectClassViolation"):
        store.replace(leaf, {Attribute.MODE: ()})
    with pytest.raises(Refused, match="superior knowledge"):
        store.add("dc=elsewhere", {"objectClass": ("dcObject",), "dc": ("elsewhere",)})


def test_an_identity_without_the_right_is_refused(server: Slapd, store: Store, leaf: str) -> None:
    identity = server.identities["admin"]
    other = open_store(settings(server, bind_dn=identity.dn, password_file=identity.password_file))
    with pytest.raises(Refused, match=f"{leaf}.*insufficientAccessRights"):
        _claim(other)
    other.close()


def test_an_identity_that_may_not_read_so_much_is_told_which_limit_to_raise(server: Slapd, store: Store) -> None:
    for number in range(6):
        store.add(f"ou={number},{SUFFIX}", {"objectClass": ("organizationalUnit",), "ou": (str(number),)})
    server.modify(f"{DATABASE}replace: olcSizeLimit\nolcSizeLimit: 4\n")
    identity = server.identities["admin"]
    limited = open_store(settings(server, bind_dn=identity.dn, password_file=identity.password_file, page_size=2))
    with pytest.raises(Refused, match=r"sizeLimitExceeded.*size\.prtotal"):
        list(limited.search(SUFFIX))
    limited.close()
    server.modify(f"{DATABASE}delete: olcSizeLimit\n")


# lost answers


@pytest.fixture
def wire(server: Slapd, tmp_path: Path) -> Iterator[UnreliableWire]:
    wire = UnreliableWire(tmp_path / "wire", server.socket)
    yield wire
    wire.close()


@pytest.fixture
def distant(server: Slapd, wire: UnreliableWire) -> Iterator[Store]:
    """The store as reached over the wire."""
    store = open_store(settings(server, uri=wire.uri))
    yield store
    store.close()


def test_a_claim_whose_answer_was_lost_is_found_to_be_won(distant: Store, wire: UnreliableWire, leaf: str) -> None:
    wire.lose_answer_to = [MODIFY]
    assert _claim(distant) is Claim.WON
    assert wire.seen.count(MODIFY) == 1
    assert _claim(distant) is Claim.LOST


def test_a_claim_that_never_arrived_is_sent_again(distant: Store, wire: UnreliableWire, leaf: str) -> None:
    wire.lose_request = [MODIFY]
    assert _claim(distant) is Claim.WON
    assert wire.seen.count(MODIFY) == 2


def test_a_claim_sent_twice_with_the_second_answer_lost_is_won(distant: Store, wire: UnreliableWire, leaf: str) -> None:
    wire.lose_request, wire.lose_answer_to = [MODIFY], []
    distant.read(leaf)
    wire.lose_answer_to = [MODIFY]
    assert _claim(distant) is Claim.WON
    assert wire.seen.count(MODIFY) == 2


def test_a_claim_that_was_lost_before_its_answer_was_is_lost(distant: Store, wire: UnreliableWire, leaf: str) -> None:
    assert _claim(distant, new="other") is Claim.WON
    wire.lose_answer_to = [MODIFY]
    assert _claim(distant) is Claim.LOST
    assert wire.seen.count(MODIFY) == 2


def test_a_claim_that_never_gets_through_says_try_later(distant: Store, wire: UnreliableWire, leaf: str) -> None:
    wire.lose_request = [MODIFY] * 5
    with pytest.raises(Unreachable, match=leaf):
        _claim(distant)
    assert wire.seen.count(MODIFY) == 2


@pytest.mark.parametrize("lost", ["lose_answer_to", "lose_request"])
def test_an_added_entry_whose_answer_was_lost_is_known_to_be_ours(
    distant: Store, wire: UnreliableWire, lost: str
) -> None:
    setattr(wire, lost, [ADD])
    assert _add_leaf(distant)
    assert not _add_leaf(distant)
    setattr(wire, lost, [DELETE])
    assert distant.delete(LEAF)
    assert not distant.delete(LEAF)


@pytest.mark.parametrize("lost", ["lose_answer_to", "lose_request"])
def test_what_an_entry_did_not_meet_is_not_taken_for_done_after_a_lost_answer(
    distant: Store, wire: UnreliableWire, leaf: str, lost: str
) -> None:
    unmet, met = Equals(Attribute.MODE, "merge"), Not(AtLeast(Attribute.EPOCH, 1))
    setattr(wire, lost, [MODIFY])
    assert distant.claim(leaf, {}, {Attribute.RETURN_VALUE: ("7",)}, provided=unmet) is Claim.LOST
    setattr(wire, lost, [MODIFY])
    assert distant.claim(leaf, {}, {Attribute.RETURN_VALUE: ("7",)}, provided=met) is Claim.WON
    setattr(wire, lost, [DELETE])
    assert not distant.delete(leaf, unmet)
    setattr(wire, lost, [DELETE])
    assert distant.delete(leaf, met)


def test_an_entry_of_another_is_not_taken_for_ours_after_a_lost_answer(
    distant: Store, wire: UnreliableWire, leaf: str
) -> None:
    wire.lose_answer_to = [ADD]
    classes = ("organizationalUnit", "sstProvisioning")
    modes = {Attribute.MODE: ("initialize",), Attribute.STATE: ("0",), Attribute.EXECUTION_DATE: ("0",)}
    assert not distant.add(LEAF, {"objectClass": classes, "ou": ("leaf",), **modes})


def test_a_replacement_whose_answer_was_lost_is_made_once_or_again(
    distant: Store, wire: UnreliableWire, leaf: str
) -> None:
    wire.lose_answer_to, wire.lose_request = [MODIFY], []
    assert distant.replace(leaf, {"description": ("one",)})
    wire.lose_request = [MODIFY]
    assert distant.replace(leaf, {"description": ("two",)})
    entry = distant.read(leaf)
    assert entry is not None
    assert entry.all("description") == ("two",)
