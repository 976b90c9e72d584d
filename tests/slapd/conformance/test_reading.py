"""What is read and found, on a real server and in memory."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.slapd.conformance.entries import NUMBERS, PAGE, add_leaf, add_unit, names_of
from tests.slapd.small_directory import SUFFIX
from vmkeep.contract.names import Attribute
from vmkeep.directory.port import AllOf, AnyOf, Equals, Present, Scope, Store


def test_an_entry_reads_back_as_it_was_added(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    entry = store.read(dn)
    assert entry is not None
    assert entry.dn == dn
    assert entry.first("SSTPROVISIONINGMODE") == "snapshot"
    assert entry.all("objectClass") == ("top", "organizationalUnit", "sstProvisioning")
    assert entry.has_class("SSTprovisioning")


def test_an_entry_that_is_not_there_reads_as_none(store: Store, base: str) -> None:
    assert store.read(f"ou=nobody,{base}") is None


def test_only_the_attributes_asked_for_are_read(store: Store, base: str) -> None:
    entry = store.read(add_leaf(store, base), (Attribute.MODE, "OU"))
    assert entry is not None
    assert {name.casefold() for name in entry.attributes} == {"sstprovisioningmode", "ou"}


def test_a_dn_reads_in_any_spelling(store: Store, base: str) -> None:
    add_leaf(store, base)
    assert store.read(f"OU=20260101t000000z, {base.upper()}") is not None


def test_each_scope_looks_just_as_far_as_it_says(store: Store, base: str) -> None:
    child = add_unit(store, "child", base)
    grandchild = add_unit(store, "grandchild", child)
    assert names_of(store, base, scope=Scope.BASE) == {base}
    assert names_of(store, base, scope=Scope.CHILDREN) == {child}
    assert names_of(store, base, scope=Scope.SUBTREE) == {base, child, grandchild}


def test_a_base_that_is_not_there_has_nothing_below_it(store: Store, base: str) -> None:
    assert names_of(store, f"ou=nobody,{base}") == set()


def test_more_entries_than_a_page_are_all_found_once(store: Store, base: str) -> None:
    dns = [add_unit(store, f"unit {number}", base) for number in range(3 * PAGE + 1)]
    found = [entry.dn for entry in store.search(base, scope=Scope.CHILDREN)]
    assert sorted(found) == sorted(dns)


@pytest.mark.parametrize("number", [0, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_however_many_entries_lie_below_one_machine_all_are_found_once(store: Store, base: str, number: int) -> None:
    machine = add_unit(store, "machine", add_unit(store, "all machines", add_unit(store, "virtual", base)))
    dns = [add_unit(store, f"unit {one}", machine) for one in range(number)]
    found = [entry.dn for entry in store.search(machine)]
    assert sorted(found) == sorted([machine, *dns])
    assert names_of(store, f"ou=nobody,{machine}") == set()


def test_other_calls_between_two_pages_do_not_disturb_a_search(store: Store, base: str) -> None:
    dns = {add_unit(store, f"unit {number}", base) for number in range(3 * PAGE)}
    found = set()
    for entry in store.search(base, scope=Scope.CHILDREN):
        assert store.read(base) is not None
        assert names_of(store, base, scope=Scope.BASE) == {base}
        found.add(entry.dn)
    assert found == dns


def test_a_search_may_be_left_halfway(store: Store, base: str) -> None:
    for number in range(2 * PAGE):
        add_unit(store, f"unit {number}", base)
    for _ in range(20):
        assert next(iter(store.search(base))) is not None
    assert store.read(base) is not None


# filters


def test_a_mode_matches_whatever_its_case(store: Store, base: str) -> None:
    dn = add_leaf(store, base, mode="unretainSmallFiles")
    assert names_of(store, base, Equals(Attribute.MODE, "UNRETAINSMALLFILES")) == {dn}


def test_filters_combine(store: Store, base: str) -> None:
    first = add_leaf(store, base, "snapshot", "0", "20260101T000000Z")
    second = add_leaf(store, base, "merge", "0", "20260102T000000Z")
    third = add_leaf(store, base, "snapshot", "20260101T000000Z", "20260103T000000Z")
    snapshot, started = Equals(Attribute.MODE, "snapshot"), Equals(Attribute.STATE, "0")
    assert names_of(store, base, AllOf((snapshot, started))) == {first}
    assert names_of(store, base, AnyOf((snapshot, started))) == {first, second, third}
    assert names_of(store, base, Present(Attribute.MODE)) == {first, second, third}
    assert names_of(store, base, Present(Attribute.RETURN_VALUE)) == set()


def test_all_of_nothing_is_everything_and_any_of_nothing_is_nothing(store: Store, base: str) -> None:
    assert names_of(store, base, AllOf(())) == {base}
    assert names_of(store, base, AnyOf(())) == set()


def test_attributes_without_an_equality_rule_match_no_filter(store: Store, base: str) -> None:
    plan = f"ou=backup,{base}"
    classes = ("top", "organizationalUnit", "sstVirtualizationBackupObjectClass")
    store.add(plan, {"objectClass": classes, "ou": ("backup",), Attribute.EXCLUDE: ("TRUE",)})
    assert names_of(store, base, Equals(Attribute.EXCLUDE, "TRUE")) == set()
    assert names_of(store, base, Present(Attribute.EXCLUDE)) == {plan}


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
    base = add_unit(store, f"odd {next(NUMBERS)}", SUFFIX)
    dn = f"ou=carrier,{base}"
    store.add(dn, {"objectClass": ("organizationalUnit",), "ou": ("carrier",), "description": (f"<{value}>",)})
    assert names_of(store, base, Equals("description", f"<{value}>")) == {dn}
    assert names_of(store, base, Equals("description", f"<{value}")) == set()


def test_odd_values_are_told_apart(store: Store, base: str) -> None:
    for number, value in enumerate(ODD_VALUES):
        dn = f"ou={number},{base}"
        store.add(dn, {"objectClass": ("organizationalUnit",), "ou": (str(number),), "description": (f"<{value}>",)})
    same = [{"ä", "Ä", "a\u0308"}]
    for number, value in enumerate(ODD_VALUES):
        twins = next((group for group in same if value in group), {value})
        wanted = {f"ou={other},{base}" for other, known in enumerate(ODD_VALUES) if known in twins}
        assert names_of(store, base, Equals("description", f"<{value}>")) == wanted, (number, value)
