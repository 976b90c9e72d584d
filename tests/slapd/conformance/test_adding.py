"""What adding, replacing and deleting say, on a real server and in memory."""

import pytest

from tests.slapd.conformance.entries import add_leaf, add_unit, names_of
from vmkeep.contract.errors import Refused
from vmkeep.contract.names import Attribute
from vmkeep.directory.port import Equals, Present, Store


def test_adding_an_entry_twice_says_so_and_changes_nothing(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
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
    dn = add_unit(store, name, base)
    entry = store.read(dn)
    assert entry is not None
    assert entry.first("ou") == name
    [found] = store.search(base, Equals("ou", name))
    assert store.read(found.dn) == entry
    child = add_unit(store, "child", dn)
    assert len(names_of(store, base, Equals("ou", "child"))) == 1
    assert store.delete(child)
    assert store.delete(found.dn)
    assert store.read(dn) is None


def test_deleting_says_whether_there_was_something(store: Store, base: str) -> None:
    dn = add_leaf(store, base)
    assert store.delete(dn)
    assert not store.delete(dn)


def test_an_entry_with_others_below_is_not_deleted(store: Store, base: str) -> None:
    add_leaf(store, base)
    with pytest.raises(Refused, match=base):
        store.delete(base)


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
    assert names_of(store, base, Present(Attribute.EXCLUDE)) == set()


def test_replacing_in_an_entry_that_is_gone_says_so(store: Store, base: str) -> None:
    assert not store.replace(f"ou=gone,{base}", {"description": ("x",)})
