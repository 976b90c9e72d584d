"""What a machine lacks: the good backup that its plan promises, or a plan that covers it at all. Pure.

A failed backup never ends by itself what its plan promises; this is what tells when nothing made up for it. Told by the
controller that serves, by its `check`, and by `vmkeep status`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Machine
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import Source, is_excluded, promise_of, source_of
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.contract.timetable import timetable

# Clocks differ by seconds. What lies further ahead was named by a clock gone wrong, and nobody knows how old it is.
_CLOCKS_DIFFER = timedelta(minutes=5)
_HOUR = timedelta(hours=1)
_NAMED = 8


class LackKind(StrEnum):
    """Of what."""

    BROKEN = "promise broken"
    UNCOVERED = "not covered"


@dataclass(frozen=True)
class Lack:
    """What one machine lacks, in a sentence that says what to do."""

    machine: str
    kind: LackKind
    sentence: str


def lack(machine: Machine, sources: Sequence[Source], leaves: Iterable[Leaf], now: datetime) -> Lack | None:
    """What a machine lacks by its plan and its leaves; None where it lacks nothing, or is left out on purpose."""
    name = machine.name
    try:
        if is_excluded(name, sources):
            return None
        promise = promise_of(name, sources)
    except Refused as why:
        return Lack(name, LackKind.BROKEN, why.sentence)
    table = timetable(machine, sources)
    uncovered = "" if table.schedule else table.sentence.removeprefix(f"{name}: ")
    if promise is not None:
        broken = _broken(promise, tuple(leaves), now)
        source = source_of(Attribute.PROMISE, sources)
        assert source is not None, name
        told = f"{name}: {broken}, and {source.dn} promises one within {_told(promise)} ({Attribute.PROMISE})"
        return Lack(name, LackKind.BROKEN, told + (f"; {uncovered}" if uncovered else "")) if broken else None
    if not uncovered:
        return None
    told = f"{name}: no plan covers it: {uncovered}; give it a schedule or a {Attribute.PROMISE}, or leave it out"
    return Lack(name, LackKind.UNCOVERED, told)


def has_good_set(leaf: Leaf) -> bool:
    """Whether there is a good set behind a leaf: a restore starts from one, and leaves it as it is."""
    restored_from = leaf.is_in_restore and not leaf.never_was_good
    return not leaf.wishes.original and (leaf.is_good_backup or restored_from)


def lies_ahead(leaf: Leaf, now: datetime) -> bool:
    """Whether a leaf was named by a clock that was wrong, or is now."""
    return leaf.planned > now + _CLOCKS_DIFFER


def told_together(names: Sequence[str]) -> str:
    """Machines that no plan covers, in one sentence."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    are = "1 machine is" if len(names) == 1 else f"{len(names)} machines are"
    return f"{are} covered by no plan: {', '.join(names[:_NAMED])}{more}; `vmkeep plan` says why"


def _broken(promise: timedelta, leaves: Sequence[Leaf], now: datetime) -> str:
    good = [leaf for leaf in leaves if has_good_set(leaf)]
    ahead = [leaf for leaf in good if lies_ahead(leaf, now)]
    newest = max((leaf.planned for leaf in good if leaf not in ahead), default=None)
    if newest is not None and now - newest <= promise:
        return ""
    old = f"its newest good backup, {to_timestamp(newest)}, is {_told(now - newest)} old" if newest else ""
    wrong = max((leaf.timestamp for leaf in ahead), default="")
    doubt = f" ({wrong} lies ahead of the clock and does not count)" if wrong else ""
    return (old or "it has no good backup") + doubt


def _told(span: timedelta) -> str:
    """In minutes below two hours, in hours below three days."""
    if span < 2 * _HOUR:
        return f"{span / timedelta(minutes=1):.0f} min"
    return f"{span / _HOUR:.0f} h" if span < 72 * _HOUR else f"{span / (24 * _HOUR):.1f} d"
