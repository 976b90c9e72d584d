"""Tells the leaves of a group how far apart their instants are, and whether the group is whole. Called by the cycle.

Written when all snapshots have come to an end, and again where one of the group fails later. Every verdict is made from
the leaves as they stand, so one that a killed controller did not write is written by the next.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from controller.decide import Bounds
from controller.groups import Group, Key, Verdict, asks_for_a_verdict, groups_of, is_to_be_judged, judge
from controller.places import Places
from vmkeep.contract.errors import Refused
from vmkeep.contract.grouping import key_of_group
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import LEAVES, Catalogue
from vmkeep.directory.port import AllOf, Claim, Equals
from vmkeep.service.metrics import Metrics


@dataclass
class Verdicts:
    """What stays the same from turn to turn."""

    places: Places
    bounds: Bounds
    log: FilteringBoundLogger
    metrics: Metrics = field(default_factory=Metrics)
    _tried: dict[Key, frozenset[Leaf]] = field(default_factory=dict)

    def tell(self, leaves: Sequence[Leaf], only: frozenset[str] | None) -> None:
        """Judge every group that is to be judged, of these machines. `leaves` are all that stand."""
        groups = groups_of(leaves, self.places.groupings(leaves))
        self._tried = {key: tried for key, tried in self._tried.items() if key in groups}
        for key, group in groups.items():
            seen = frozenset(member.leaf for member in group.members)
            if is_to_be_judged(group, self.bounds) and self._tried.get(key) != seen and _concerns(group, only):
                self._judge(key, group)
                self._tried[key] = seen  # not before: the directory may have been away

    def tell_of(self, given_up: Iterable[Leaf], leaves: Sequence[Leaf]) -> None:
        """Judge the groups of leaves that have just ended without a backup, and that no view shows any more."""
        standing = groups_of(leaves, self.places.groupings(leaves))
        for key in {(key_of_group(leaf.group), leaf.timestamp) for leaf in given_up if leaf.group}:
            if key not in standing or is_to_be_judged(standing[key], self.bounds):
                self._judge(key)

    def _judge(self, key: Key, group: Group | None = None) -> None:
        """Who made the group be judged is told last: until all others are told, it is to be judged again."""
        catalogue, (name, timestamp) = self.places.catalogue, key
        matching = AllOf((LEAVES, Equals(Attribute.GROUP, name), Equals("ou", timestamp)))
        leaves = list(catalogue.leaves(matching=matching))
        verdict = judge(key, leaves, self.places.members(name), self.bounds)
        last = (
            {member.leaf.dn for member in group.members if asks_for_a_verdict(member.leaf, self.bounds)}
            if group
            else ()
        )
        told = [self._tell(catalogue, leaf, verdict) for leaf in sorted(leaves, key=lambda leaf: leaf.dn in last)]
        if any(told):
            self._say(verdict)

    def _tell(self, catalogue: Catalogue, leaf: Leaf, verdict: Verdict) -> bool:
        """False where it is gone, or a later controller's to judge."""
        try:
            return catalogue.tell(leaf, _written(verdict)) is Claim.WON
        except Refused as why:
            self.log.error(f"{leaf.machine}: {leaf.timestamp} cannot be told of its group: {why.sentence}")  # noqa: TRY400
            return True

    def _say(self, verdict: Verdict) -> None:
        spread = (
            "" if verdict.spread is None else f", its instants lie within {verdict.spread:.3f} s by the nodes' clocks"
        )
        sentence = f"group {verdict.name} of {verdict.key[1]} is {verdict.consistency}{spread}"
        (self.log.warning if verdict.reasons else self.log.info)(sentence)
        if verdict.spread is not None:
            self.metrics.spread.labels(verdict.name).set(verdict.spread)
        if verdict.reasons:
            self.metrics.broken_groups.labels(verdict.name).inc()


def _written(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    spread = () if verdict.spread is None else (f"{verdict.spread:.3f}",)
    return {Attribute.GROUP_CONSISTENCY: (verdict.consistency,), Attribute.GROUP_SPREAD: spread}


def _concerns(group: Group, only: frozenset[str] | None) -> bool:
    return only is None or any(member.leaf.machine.casefold() in only for member in group.members)
