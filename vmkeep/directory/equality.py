"""When two values, or two DNs, are the same to the directory. Called by the in-memory twin and to look up lost answers.

Knows only the rules of attributes in use; all others compare without case, as nearly all of them do.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from vmkeep.contract.names import Attribute

NormalDN: TypeAlias = tuple[frozenset[tuple[str, str]], ...]

# Their definitions name no equality rule: no filter matches them and no single value can be deleted.
WITHOUT_EQUALITY = frozenset(
    name.casefold()
    for name in (
        Attribute.CRON_MINUTE,
        Attribute.CRON_HOUR,
        Attribute.CRON_DAY,
        Attribute.CRON_MONTH,
        Attribute.CRON_DAY_OF_WEEK,
        Attribute.CRON_COMMAND,
        Attribute.CRON_ACTIVE,
        Attribute.RESTORE_WITHOUT_STATE,
        Attribute.EXCLUDE,
        Attribute.FORCE_START,
    )
)
_BY_CASE = frozenset(name.casefold() for name in (Attribute.SET_DIRECTORY, Attribute.MANIFEST_DIGEST))
_SPACES = re.compile(" +")
_ESCAPED = re.compile(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)", re.DOTALL)
_RDNS = re.compile(r"(?:\\.|[^\\,])+", re.DOTALL)
_PAIRS = re.compile(r"(?:\\.|[^\\+])+", re.DOTALL)


def has_equality(name: str) -> bool:
    """Whether filters can match the attribute's values."""
    return name.casefold() not in WITHOUT_EQUALITY


def normal_value(name: str, value: str) -> str:
    """The form in which equal values of an attribute are equal strings (RFC 4518: spaces and compatibility forms)."""
    prepared = _SPACES.sub(" ", unicodedata.normalize("NFKC", value)).strip(" ")
    return prepared if name.casefold() in _BY_CASE else prepared.lower()


def same_values(name: str, some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two attributes hold the same values, in any order."""
    return sorted(normal_value(name, value) for value in some) == sorted(normal_value(name, value) for value in others)


@lru_cache(maxsize=4096)
def normal_dn(dn: str) -> NormalDN:
    """The form in which two spellings of one DN are equal; from the entry upwards."""
    return tuple(_normal_rdn(part) for part in _RDNS.findall(dn))


def rdn_values(dn: str) -> list[tuple[str, str]]:
    """Attribute and value of each part of an entry's own name."""
    return [_name_and_value(part) for part in _PAIRS.findall(_RDNS.findall(dn)[0])]


def _normal_rdn(rdn: str) -> frozenset[tuple[str, str]]:
    pairs = (_name_and_value(part) for part in _PAIRS.findall(rdn))
    return frozenset((name.casefold(), normal_value(name, value)) for name, value in pairs)


def _name_and_value(part: str) -> tuple[str, str]:
    name, sign, value = part.partition("=")
    if not sign or not name.strip():
        raise ValueError(f"{part!r} is no part of a DN: attribute=value is wanted")
    return name.strip(), _ESCAPED.sub(_unescaped, _without_outer_spaces(value))


def _without_outer_spaces(value: str) -> str:
    stripped = value.strip(" ")
    # An escaped space at the end belongs to the value.
    return stripped + " " if stripped.endswith("\\") and not stripped.endswith("\\\\") else stripped


def _unescaped(found: re.Match[str]) -> str:
    if found.group(2) is not None:
        return found.group(2)
    return bytes.fromhex(found.group(1).replace("\\", "")).decode("utf-8", "surrogateescape")
