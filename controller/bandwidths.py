"""How fast work may go that is asked for: each piece is given an even share of every total it takes up. Pure.

A total stands beside a number at once and is divided by it beforehand. So what is given never adds up to more, nothing
has to be told to work that is under way, and nobody has to know what others were given. MiB/s; 0: no limit. Called by
the budgets.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bandwidths:
    """What one kind of work may take all together: in all, on each node, into each backup root."""

    overall: int = 0
    per_node: int = 0
    per_root: int = 0

    def total(self, kind: str) -> int:
        """That of one kind of place: "" for all, "node", "root"."""
        return {"": self.overall, "node": self.per_node, "root": self.per_root}.get(kind, 0)

    def share(self, kind: str, number: int | None) -> int:
        """What each of `number` may take there; the settings see to it that it is 1 at least."""
        total = self.total(kind)
        return max(total // number, 1) if total and number else 0  # 0 would lift every limit


NOT_LIMITED = Bandwidths()


def lowest(limits: Iterable[int]) -> int:
    """The one that counts of several limits."""
    return min((limit for limit in limits if limit), default=0)
