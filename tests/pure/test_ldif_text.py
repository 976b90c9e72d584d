"""LDIF that is read back: what was written comes back, and what would do more than set attributes is refused."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.names import escape_rdn
from vmkeep.directory.ldif_text import MAX_BYTES, from_ldif, to_ldif
from vmkeep.directory.port import Entry

DN = "sstVirtualMachine=m,ou=virtual machines,dc=example,dc=org"

_texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
_rdn_values = _texts.filter(lambda text: "\0" not in text and "\n" not in text)
_names = st.sampled_from(["ou", "cn", "sstNode", "sstSourceFile", "description", "userPassword"])
_entries = st.builds(
    lambda rdn, attributes: Entry(f"ou={escape_rdn(rdn)},dc=example,dc=org", attributes),
    _rdn_values,
    st.dictionaries(_names, st.lists(_texts, min_size=1).map(tuple), min_size=1),
)


@given(st.lists(_entries))
def test_what_is_written_reads_back_the_same(entries: list[Entry]) -> None:
    assert from_ldif(to_ldif(entries)) == entries


@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        entries = from_ldif(text)
    except Refused as why:
        assert why.code == ReturnValue.CANNOT_COPY_BACKEND_FILE
    else:
        assert all(entry.dn for entry in entries)


def test_a_sheet_as_ldapsearch_prints_it_is_read() -> None:
    lines = ["version: 1", "", "# a comment", "  that goes on", f"dn: {DN}", "ou: a", " b", f"OU:: {_encoded('c ')}"]
    assert from_ldif("\r\n".join([*lines, "", "", ""])) == [Entry(DN, {"ou": ("ab", "c ")})]


def test_a_value_in_plain_utf8_is_read() -> None:
    assert from_ldif(f"dn: {DN}\nsstDisplayName: Zürich\n")[0].first("sstDisplayName") == "Zürich"


def test_an_empty_text_has_no_entries() -> None:
    assert from_ldif("") == []


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("ou:< file:///etc/shadow", "URL"),
        ("ou:<file:///etc/shadow", "URL"),
        ("ou: <file:///etc/shadow", "URL"),
        ("ou:<\n  file:///etc/shadow", "URL"),
        ("o\n u:< file:///etc/shadow", "URL"),
        ("changetype: delete", "changes"),
        ("ChangeType: modify\nreplace: ou\nou: x\n-", "changes"),
        ("control: 1.2.840.113556.1.4.805 true", "changes"),
        ("ou", "attribute: value"),
        ("-", "attribute: value"),
        ("ou:: YQ=", "base64"),
        ("ou:: YQ*==", "base64"),
        ("ou:: " + base64.b64encode(b"\xff\xfe").decode(), "UTF-8"),
        ("ou: a\0b", "control character"),
        ("ou: a\rdn: b", "control character"),
        (f"dn: {DN}", "dn"),
    ],
)
def test_what_is_no_plain_value_is_refused(lines: str, word: str) -> None:
    with pytest.raises(Refused, match=word) as refusal:
        from_ldif(f"dn: {DN}\n{lines}\nou: x\n")
    assert refusal.value.code == ReturnValue.CANNOT_COPY_BACKEND_FILE


@pytest.mark.parametrize(
    "dn",
    [
        "",
        "nothing",
        "ou=a,,dc=org",
        "ou=a,",
        "ou=a\\",
        "ou=a+cn=b,dc=org",
        'ou="a",dc=org',
        "ou=#0403616263,dc=org",
        "ou= #0403616263,dc=org",
        "2.5.4.11=a,dc=org",
        "=a,dc=org",
    ],
)
def test_a_name_in_unusual_form_is_refused(dn: str) -> None:
    with pytest.raises(Refused):
        from_ldif(f"dn: {dn}\nou: x\n")
    with pytest.raises(Refused):
        from_ldif(f"dn:: {_encoded(dn)}\nou: x\n")


def test_a_name_that_would_keep_a_pattern_busy_for_ever_is_answered_at_once() -> None:
    started = time.monotonic()
    for hostile in ("a=b+" * 2000 + "!", "a=" + "\\,a=b" * 2000 + ",!", "a=b, " * 2000):
        with pytest.raises(Refused):
            from_ldif(f"dn: {hostile}\nou: x\n")
    from_ldif(f"dn: ou={'x' * 5000}{',ou=y' * 2000}\nou: x\n")
    from_ldif("dn: ou=" + "\\+a=b\\," * 2000 + "z\nou: x\n")
    assert time.monotonic() - started < 60


def test_more_than_any_machine_needs_is_refused() -> None:
    with pytest.raises(Refused, match="bytes long"):
        from_ldif(f"dn: {DN}\nou: " + "x" * MAX_BYTES)


def test_text_that_was_no_utf8_is_refused() -> None:
    with pytest.raises(Refused, match="UTF-8"):
        from_ldif(f"dn: {DN}\nou: " + b"\xff".decode(errors="surrogateescape"))


def test_an_attribute_spelled_in_two_ways_is_one_attribute() -> None:
    entry = from_ldif(f"dn: {DN}\nsstNode: a\nSSTNODE: b\n")[0]
    assert entry.all("sstnode") == ("a", "b")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
