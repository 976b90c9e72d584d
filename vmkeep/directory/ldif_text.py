"""Entries as LDIF (RFC 2849): a set's copy of a machine's entry, written, and read back after a person's edit.

Reading is strict, because what is read is going to be written into the directory: content records only, no URL is ever
opened, nothing is guessed. Called by the agent and the controller.
"""

import base64
import binascii
import io
import re
from collections.abc import Iterable, Iterator

from ldif import LDIFParser, LDIFWriter

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.port import Entry

MAX_BYTES = 4 << 20
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9-]*(?:;[A-Za-z0-9-]+)*):(:?)(.*)", re.DOTALL)
_RDN = r" *[A-Za-z][A-Za-z0-9-]* *=(?! *#)(?:\\[^\n]|[^\\,+\"<>;\x00\n])+"
# Stricter than the library's own pattern, which can be made to run for ever.
_DN = re.compile(rf"{_RDN}(?:,{_RDN})*")
_CHANGES = ("changetype", "control", "newrdn", "deleteoldrdn", "newsuperior")


def to_ldif(entries: Iterable[Entry]) -> str:
    """The entries in the order given, ready for `ldapadd`."""
    text = io.BytesIO()
    writer = LDIFWriter(text, cols=MAX_BYTES)  # a person edits this: a folded path is found by no search
    for entry in entries:
        values = {name: [_as_written(value) for value in values] for name, values in entry.attributes.items()}
        writer.unparse(_as_written(entry.dn), values)
    return text.getvalue().decode()


def from_ldif(text: str) -> list[Entry]:
    """The entries of LDIF content records, in the order written; values of one attribute together, however spelled.

    Refused (10) names the line: URL values, change records, controls, more than 4 MiB, broken base64, what is not
    UTF-8, and names of entries in unusual form.
    """
    data = _bytes(text)
    for number, line in _logical_lines(text):
        _check_line(number, line)
    try:
        records = list(LDIFParser(io.BytesIO(data)).parse())
    except (ValueError, UnicodeError, binascii.Error) as why:
        raise _refused(f"cannot be read: {why}") from None
    return [_entry(dn, attributes) for dn, attributes in records if dn is not None or attributes]


def _as_written(value: str) -> str | bytes:
    # As text, because bytes are written in base64 even where a person could read them; but readers strip blanks.
    # What was no text when it was read goes out as the bytes it was.
    data = value.encode("utf-8", "surrogateescape")
    return value if data == data.strip() and value.isprintable() else data


def _bytes(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise _refused("is not UTF-8; save it as UTF-8") from None
    if len(data) > MAX_BYTES:
        raise _refused(f"is {len(data)} bytes long; a machine's entries never need more than {MAX_BYTES}")
    return data


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, with folded lines put together and comments left out."""
    number, line = 0, ""
    for here, physical in enumerate(text.split("\n"), start=1):
        content = physical.removesuffix("\r")
        if "\r" in content or "\0" in content:
            raise _refused(f"line {here} holds a control character; write such a value in base64")
        if content.startswith(" ") and number:
            line += content[1:]
            continue
        if line and not line.startswith("#"):
            yield number, line
        number, line = here, content
    if line and not line.startswith("#"):
        yield number, line


def _check_line(number: int, line: str) -> None:
    found = _LINE.fullmatch(line)
    if not found:
        raise _refused(f"line {number} is {line[:60]!r}; attribute: value is wanted")
    name, is_encoded, value = found.group(1).casefold(), found.group(2), found.group(3).strip()
    if name in _CHANGES:
        raise _refused(f"line {number} says {name!r}; whole entries are wanted, not changes: remove the line")
    if not is_encoded and value.startswith("<"):
        raise _refused(f"line {number} takes the value of {name} from a URL; write the value itself")
    decoded = _decoded(number, name, value) if is_encoded else value
    if name == "dn" and not _DN.fullmatch(decoded):
        raise _refused(f"line {number}: {decoded[:200]!r} is no name of an entry in plain form (attribute=value,…)")


def _decoded(number: int, name: str, value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode()
    except binascii.Error:
        raise _refused(f"line {number}: the value of {name} is broken base64") from None
    except UnicodeDecodeError:
        raise _refused(f"line {number}: the value of {name} is not UTF-8") from None


def _entry(dn: str | None, attributes: dict[str, list[str]]) -> Entry:
    if dn is None:
        raise _refused("has an entry without a line 'dn:'")
    known: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    for name, more in attributes.items():
        spelled = known.setdefault(name.casefold(), name)
        values[spelled] = (*values.get(spelled, ()), *more)
    return Entry(dn, values)


def _refused(what: str) -> Refused:
    return Refused(ReturnValue.CANNOT_COPY_BACKEND_FILE, f"the LDIF {what}")
