"""Which nodes give no sign of life although they were asked for something. Called by the admission.

Where a node is down, what it was asked for must not use up what the others may do.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import ROWS, Actor, Kind

# Work that shows no progress is told by its agent after a while (silent_seconds), which is a sign of life.
_AT_WORK = 3
_WRITTEN_BY_CONTROLLER = (ReturnValue.NOT_TAKEN_UP, ReturnValue.NO_SIGN_OF_LIFE)


@dataclass
class Pulse:
    """Remembers who was found down until it is heard of. `take_up`: how long an agent has to take work up."""

    take_up: timedelta
    elapsed: Callable[[], float] = time.monotonic
    _down: dict[str, float] = field(default_factory=dict)

    def down(
        self, leaves: Iterable[Leaf], changed: Mapping[str, datetime], nodes: Mapping[str, str], now: datetime
    ) -> frozenset[str]:
        """The nodes that are down. `changed`: when leaves were written, by our clock; `nodes`: where machines are."""
        known = [
            (leaf, nodes.get(leaf.machine.casefold(), ""), now - changed[leaf.dn])
            for leaf in leaves
            if leaf.dn in changed
        ]
        heard = dict(_heard(known))
        for leaf, node, age in known:
            waited = self._most(leaf)
            if node and waited and min(age, heard.get(node, age)) >= waited:
                self._down.setdefault(node, self.elapsed())
        for node, age in heard.items():
            if node in self._down and age.total_seconds() < self.elapsed() - self._down[node]:
                del self._down[node]
        return frozenset(self._down)

    def _most(self, leaf: Leaf) -> timedelta | None:
        """How long the leaf may stand as it does; None where nothing is awaited of an agent."""
        kind = ROWS[leaf.mode].kind if leaf.mode else None
        if leaf.is_failed or kind not in (Kind.IMPERATIVE, Kind.AT_WORK):
            return None
        return self.take_up if kind is Kind.IMPERATIVE else _AT_WORK * self.take_up


def _heard(known: Iterable[tuple[Leaf, str, timedelta]]) -> Iterator[tuple[str, timedelta]]:
    """For each node how long ago its agent last wrote to a leaf."""
    newest: dict[str, timedelta] = {}
    for leaf, node, age in known:
        by_agent = leaf.mode is not None and ROWS[leaf.mode].writer is Actor.AGENT
        if node and by_agent and leaf.return_value not in _WRITTEN_BY_CONTROLLER:
            newest[node] = min(age, newest.get(node, age))
    yield from newest.items()
