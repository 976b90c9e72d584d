"""Hostile names, values and DNs against a real slapd: each finds exactly its own entry, or nothing, or is refused.

Whatever the text, the store never raises anything but our own two errors.
"""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lab.slapd import SlapdOptions
from tests.conftest import SlapdFactory
from tests.slapd import small_directory
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Tree, escape_rdn
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.equality import normal_value
from vmkeep.directory.port import AllOf, Claim, Equals, Scope, Store

SUFFIX = small_directory.SUFFIX
PLACE = f"ou=names,{SUFFIX}"
BYSTANDERS = ("plain", "*", "a)(ou=*", "x", "back\\slash", "virtual machines")
HOSTILE = (
    *("*", "(", ")", "\\", "\0", "*)(objectClass=*", ")(|(ou=*", "a)(ou=*))(&(ou=x", "\\2a", "\\00", "\\", "\\\\"),
    *("a,b", "a+b", "a=b", 'a"b', "a<b>c", "a;b", "#a", " a", "a ", "  ", "a,ou=names", "ou=x,ou=names", "\\,", "a\\"),
    *(
        "\n",
        "a\nb",
        "\r\ndn: x",
        "\x7f",
        "\u202e",
        "é",
        "e\u0301",
        "ﬁ",
        "Ⅷ",
        "ß",
        "İ",
        "\U0001f4be",
        "\ud800",
        "\udcff",
    ),
    *(
        "../../etc/passwd",
        "$(id)",
        "`id`",
        "%2e%2e",
        "json:{}",
        "x" * 3000,
        "$",
        "{0}",
        "%s",
        "&",
        "|",
        "!",
        "~=",
        ":=",
    ),
)
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("*()\\\0,+=\"<>;# ab/\n'&|!~:é"), max_size=12),
    st.text(max_size=30),
    st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=3).map("".join),
)
hard = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def store(slapd_factory: SlapdFactory) -> Iterator[Store]:
    """Some entries that nobody asks for."""
    server = slapd_factory(SlapdOptions(tree=None, configuration=(), synchronous=False))
    small_directory.populate(server)
    store = open_store(small_directory.settings(server, timeout_seconds=10))
    assert store.add(PLACE, _unit("names"))
    for name in BYSTANDERS:
        assert store.add(dn_of(name), _unit(name))
    yield store
    store.close()


def _unit(name: str) -> dict[str, tuple[str, ...]]:
    return {"objectClass": ("organizationalUnit",), "ou": (name,)}


def dn_of(name: str) -> str:
    return f"ou={escape_rdn(name)},{PLACE}"


def is_known(name: str) -> bool:
    return any(normal_value("ou", name) == normal_value("ou", known) for known in BYSTANDERS)


@hard
@given(texts)
def test_a_value_in_a_filter_finds_what_bears_it_and_nothing_else(store: Store, value: str) -> None:
    with contextlib.suppress(Refused, TryLater):
        found = {entry.first("ou") for entry in store.search(PLACE, Equals("ou", value), Scope.CHILDREN)}
        expected = {known for known in BYSTANDERS if normal_value("ou", known) == normal_value("ou", value)}
        assert found <= expected
        if value in BYSTANDERS:
            assert found == {value}


@hard
@given(texts)
def test_a_name_in_a_dn_makes_finds_and_removes_its_own_entry_alone(store: Store, name: str) -> None:
    assume(not is_known(name))
    before = {entry.dn for entry in store.search(PLACE)}
    try:
        made = store.add(dn_of(name), _unit(name))
    except (Refused, TryLater):
        assert {entry.dn for entry in store.search(PLACE)} == before, "what is refused leaves nothing"
        return
    try:
        assert made
        [new] = [entry for entry in store.search(PLACE) if entry.dn not in before]
        assert normal_value("ou", name) in {normal_value("ou", value) for value in new.all("ou")}
        alone = AllOf((Equals("objectClass", "organizationalUnit"), Equals("ou", name)))
        assert [entry.dn for entry in store.search(PLACE, alone, Scope.CHILDREN)] == [new.dn]
        found = store.read(dn_of(name))
        assert found is not None
        assert found.dn == new.dn
    finally:
        assert store.delete(dn_of(name))
    assert {entry.dn for entry in store.search(PLACE)} == before


@hard
@given(texts)
@example("*")
def test_every_question_of_ours_about_a_hostile_name_is_answered_or_refused(store: Store, name: str) -> None:
    catalogue = Catalogue(store, Tree(SUFFIX))
    for ask in (
        lambda: catalogue.machine(name),
        lambda: catalogue.machine_entry(name),
        lambda: catalogue.subtree(name),
        lambda: list(catalogue.leaves(name or "x")),
        lambda: catalogue.leaf(catalogue.tree.leaf(name, name)),
        lambda: list(catalogue.naming_images([name])),
        lambda: store.read(catalogue.tree.pool_plan(name)),
        lambda: catalogue.add_leaf(name, name, name),
        lambda: catalogue.add_backup_subtree(name),
        lambda: store.replace(dn_of(name) + "x", {"description": (name,)}),
        lambda: store.claim(PLACE, {"ou": name}, {"description": (name,)}),
    ):
        with contextlib.suppress(Refused, TryLater):
            assert ask() in (None, [], False, Claim.LOST) or normal_value("ou", name) == "names"


@pytest.mark.parametrize("value", ["one", *HOSTILE])
def test_a_hostile_value_that_is_taken_is_read_back_to_the_letter(store: Store, value: str) -> None:
    with contextlib.suppress(Refused):
        assert store.replace(dn_of("plain"), {"description": (value,)})
        entry = store.read(dn_of("plain"))
        assert entry is not None
        assert entry.all("description") == (value,)
