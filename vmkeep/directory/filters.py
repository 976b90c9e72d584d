"""Filters as the directory reads them (RFC 4515), and names that may stand in one. Called by the store."""

import re

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.port import AllOf, AnyOf, AtLeast, Equals, Filter, Not, Present

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*(?:;[A-Za-z0-9-]+)*|\d+(?:\.\d+)+")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/")
_EVERYTHING = "(objectClass=*)"
_NOTHING = "(!(objectClass=*))"


def octets(value: str) -> bytes:
    """A value as it is sent, bytes that were no text when read as they came; Refused where no UTF-8 stands for it."""
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Refused(
            ReturnValue.INVALID_NAME, f"{value!r} is no text that a directory could hold (UTF-8); correct it"
        ) from None


def escape_value(value: str) -> str:
    r"""A value as it may stand in a filter: every byte that could mean something is written as `\xx`."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:02x}" for byte in octets(value))


def attribute_name(name: str) -> str:
    """The name itself; ValueError where it is none, because such a name could change a filter's meaning."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an attribute")
    return str(name)


def render(matching: Filter) -> str:
    """The filter's text."""
    match matching:
        case Equals(name, value):
            return f"({attribute_name(name)}={escape_value(value)})"
        case AtLeast(name, number):
            return f"({attribute_name(name)}>={int(number)})"
        case Present(name):
            return f"({attribute_name(name)}=*)"
        case Not(part):
            return f"(!{render(part)})"
        case AllOf(parts):
            return _joined("&", parts, _EVERYTHING)
        case AnyOf(parts):
            return _joined("|", parts, _NOTHING)


def _joined(sign: str, parts: tuple[Filter, ...], of_none: str) -> str:
    return f"({sign}{''.join(render(part) for part in parts)})" if parts else of_none
