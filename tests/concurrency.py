"""How much of one kind of work was asked for or at work at once, by what slapd itself recorded of each write."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

_MACHINE = re.compile(r"ou=[^,]+,ou=backup,sstVirtualMachine=([^,]+),", re.IGNORECASE)
_WORKING = {"snapshot": "snapshotting", "merge": "merging", "retain": "retaining"}
_TOLD = ("sstProvisioningMode", "sstProvisioningReturnValue")


def moves(history: Iterable[Mapping[str, Sequence[str]]]) -> list[tuple[str, str, str]]:
    """Machine, mode and return value after each write that changed one of them, in order."""
    known: dict[str, dict[str, str]] = defaultdict(dict)
    found = []
    for write in history:
        dn = write["reqDN"][0]
        machine = _MACHINE.match(dn)
        before = dict(known[dn.casefold()])
        for modification in write.get("reqMod", []):
            name, _, rest = modification.partition(":")
            if name in _TOLD and rest[:1] in ("+", "="):
                known[dn.casefold()][name] = rest[2:]
        values = known[dn.casefold()]
        if machine and values != before:
            found.append((machine.group(1), values.get(_TOLD[0], ""), values.get(_TOLD[1], "0")))
    return found


def most_at_once(
    history: Iterable[Mapping[str, Sequence[str]]], kind: str, place: Callable[[str], str] = lambda _machine: "all"
) -> dict[str, int]:
    """The most machines that were asked for a kind of work or at it at one time, for each place."""
    held: set[str] = set()
    most: Counter[str] = Counter()
    for machine, mode, code in moves(history):
        if mode in (kind, _WORKING[kind]) and code == "0":
            held.add(machine)
        else:
            held.discard(machine)
        most |= Counter(map(place, held))
    return dict(most)
