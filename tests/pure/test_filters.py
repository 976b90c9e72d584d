"""Filters, names and values as text: nothing in a value can become part of a filter's meaning."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.names import Attribute, escape_rdn
from vmkeep.directory.claims import ClaimRequest
from vmkeep.directory.equality import normal_dn, normal_value, rdn_values, same_values
from vmkeep.directory.filters import attribute_name, escape_value, render
from vmkeep.directory.matching import matches
from vmkeep.directory.port import AllOf, AnyOf, Claim, Entry, Equals, Present

text = st.text(st.characters(exclude_categories=["Cs"]))
names = text.filter(lambda value: bool(value.strip(" ")) and "\0" not in value)


@given(text)
def test_an_escaped_value_holds_nothing_that_means_something(value: str) -> None:
    assert re.fullmatch(r"(?:[A-Za-z0-9._:/-]|\\[0-9a-f]{2})*", escape_value(value))


@given(text)
def test_an_escaped_value_stands_for_the_value(value: str) -> None:
    raw = re.sub(
        rb"\\([0-9a-f]{2})", lambda found: bytes.fromhex(found.group(1).decode()), escape_value(value).encode()
    )
    assert raw.decode() == value


def test_bytes_that_are_no_text_are_escaped_as_they_are() -> None:
    assert escape_value(b"\xff".decode("utf-8", "surrogateescape")) == r"\ff"


def test_filters_are_rendered_in_prefix_form() -> None:
    both = AllOf((Equals(Attribute.MODE, "snap*"), Present("sstNode")))
    assert render(both) == r"(&(sstProvisioningMode=snap\2a)(sstNode=*))"
    assert render(AnyOf((both,))) == rf"(|{render(both)})"
    assert render(AllOf(())) == "(objectClass=*)"
    assert render(AnyOf(())) == "(!(objectClass=*))"


@pytest.mark.parametrize("name", ["", "a b", "a)(b", "a=b", "a*", "ä", "1a", "a\n", "-a", "1.", "a;"])
def test_what_is_no_attribute_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        render(Equals(name, "x"))
    with pytest.raises(ValueError, match="not the name"):
        render(Present(name))


@pytest.mark.parametrize("name", ["ou", "sstNode", "userCertificate;binary", "2.5.4.11", "x-y"])
def test_attribute_names_and_oids_are_taken(name: str) -> None:
    assert attribute_name(name) == name


@given(names)
def test_a_name_written_into_a_dn_is_read_back(name: str) -> None:
    [(attribute, value)] = rdn_values(f"ou={escape_rdn(name)},dc=example,dc=org")
    assert attribute == "ou"
    assert normal_value("ou", value) == normal_value("ou", name)


@given(names, names)
def test_two_dns_are_equal_just_when_their_names_are(one: str, other: str) -> None:
    same = normal_dn(f"ou={escape_rdn(one)},dc=x") == normal_dn(f"ou={escape_rdn(other)},dc=x")
    assert same == (normal_value("ou", one) == normal_value("ou", other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ou=a,dc=x", "OU=A, DC=X"),
        ("ou=a,dc=x", "ou = a , dc = x"),
        ("ou=a+cn=b,dc=x", "cn=B+ou=A,dc=x"),
        (r"ou=a\,b,dc=x", r"ou=a\2cb,dc=x"),
        (r"ou=\c3\a4,dc=x", "ou=Ä,dc=x"),
        ("ou=virtual  machines,dc=x", "ou=virtual machines,dc=x"),
    ],
)
def test_spellings_of_one_dn_are_one(one: str, other: str) -> None:
    assert normal_dn(one) == normal_dn(other)


def test_different_dns_are_different() -> None:
    dns = ["ou=a,dc=x", "ou=a,dc=y", "ou=b,dc=x", "cn=a,dc=x", "dc=x", r"ou=a\,dc=x"]
    assert len({normal_dn(dn) for dn in dns}) == len(dns)


def test_values_compare_by_the_rule_of_their_attribute() -> None:
    assert same_values(Attribute.MODE, ["Snapshot"], ["snapshot"])
    assert same_values("description", ["b", "A  a"], ["a a", "B"])
    assert not same_values(Attribute.SET_DIRECTORY, ["/a"], ["/A"])
    assert not same_values("description", ["a"], ["a", "a"])


def test_the_twin_matches_nothing_without_an_equality_rule() -> None:
    entry = Entry("ou=x", {Attribute.EXCLUDE: ("TRUE",)})
    assert not matches(entry, Equals(Attribute.EXCLUDE, "TRUE"))
    assert matches(entry, Present(Attribute.EXCLUDE))


# claims as text, and what an entry tells after a lost answer

REQUEST = ClaimRequest(
    {Attribute.MODE: "snapshot", Attribute.STATE: "0"},
    {"SSTPROVISIONINGMODE": ("snapshotting",), Attribute.RETURN_VALUE: ("0",), Attribute.MESSAGE: ()},
)


def test_a_claim_deletes_what_it_expects_before_it_adds() -> None:
    assert REQUEST.modifications() == {
        Attribute.MODE: [("MODIFY_DELETE", [b"snapshot"]), ("MODIFY_ADD", [b"snapshotting"])],
        Attribute.STATE: [("MODIFY_DELETE", [b"0"]), ("MODIFY_ADD", [b"0"])],
        Attribute.RETURN_VALUE: [("MODIFY_REPLACE", [b"0"])],
        Attribute.MESSAGE: [("MODIFY_REPLACE", [])],
    }


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ({Attribute.MODE: ("snapshotting",), Attribute.STATE: ("0",), Attribute.RETURN_VALUE: ("0",)}, Claim.WON),
        ({Attribute.MODE: ("snapshot",), Attribute.STATE: ("0",)}, None),
        ({Attribute.MODE: ("snapshot",), Attribute.STATE: ("1",)}, Claim.LOST),
        ({Attribute.MODE: ("snapshotting",), Attribute.STATE: ("1",), Attribute.RETURN_VALUE: ("0",)}, Claim.LOST),
        ({Attribute.MODE: ("snapshotting",), Attribute.STATE: ("0",), Attribute.RETURN_VALUE: ("5",)}, Claim.LOST),
        ({Attribute.STATE: ("0",)}, Claim.LOST),
    ],
)
def test_an_entry_tells_what_became_of_a_claim(found: dict[str, tuple[str, ...]], outcome: Claim | None) -> None:
    assert REQUEST.outcome(Entry("ou=x", found)) is outcome


def test_an_entry_that_is_gone_lost_the_claim() -> None:
    assert REQUEST.outcome(None) is Claim.LOST
