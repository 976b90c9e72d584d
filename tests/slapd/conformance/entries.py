"""Entries for the conformance suite of the stores."""

from itertools import count

from vmkeep.contract.names import Attribute, escape_rdn
from vmkeep.directory.port import ANYTHING, Filter, Scope, Store

PAGE = 7
NUMBERS = count()  # no two tests have a name in common


def add_unit(store: Store, name: str, above: str) -> str:
    """An organizational unit; its DN."""
    dn = f"ou={escape_rdn(name)},{above}"
    assert store.add(dn, {"objectClass": ("top", "organizationalUnit"), "ou": (name,)})
    return dn


def add_leaf(store: Store, above: str, mode: str = "snapshot", state: str = "0", name: str = "20260101T000000Z") -> str:
    """A leaf, as far as the store knows one; its DN."""
    dn = f"ou={name},{above}"
    classes = ("top", "organizationalUnit", "sstProvisioning")
    attributes = {"objectClass": classes, "ou": (name,), Attribute.MODE: (mode,), Attribute.STATE: (state,)}
    assert store.add(dn, {**attributes, Attribute.EXECUTION_DATE: ("0",)})
    return dn


def names_of(store: Store, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE) -> set[str]:
    """The DNs a search finds."""
    return {entry.dn for entry in store.search(base, matching, scope)}
