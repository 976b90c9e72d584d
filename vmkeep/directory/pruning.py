"""Reads what is judged of a machine's leaves, and asks for the deletions: claims that can be lost. For all who prune.

Called by the controller, after each good backup and once an hour, and by `vmkeep prune`.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

from vmkeep.contract.leaf import NOW
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.contract.plan import policy_of
from vmkeep.contract.pruning import JUDGED_BY, Judged, judge_leaves
from vmkeep.contract.retention import Policy
from vmkeep.directory.catalogue import LEAVES, Catalogue, Report
from vmkeep.directory.port import AllOf, Claim, Present
from vmkeep.directory.survey import Surveyed


def read_surveyed(catalogue: Catalogue, name: str) -> Surveyed | None:
    """One machine with its plan's sources; neither disks nor leaves are read for it."""
    machine = catalogue.machine_entry(name)
    return Surveyed(machine, catalogue.plan_sources(machine)) if machine else None


def restored_elsewhere(catalogue: Catalogue) -> Mapping[str, Collection[str]]:
    """The timestamps of sets from which other machines are being made, by the folded name of whose sets they are."""
    found: dict[str, set[str]] = {}
    for leaf in catalogue.leaves(matching=AllOf((LEAVES, Present(Attribute.RESTORE_FROM)))):
        if leaf.is_in_restore:
            found.setdefault(leaf.wishes.original.casefold(), set()).add(leaf.timestamp)
    return found


def judge_machine(
    catalogue: Catalogue,
    one: Surveyed,
    elsewhere: Mapping[str, Collection[str]],
    now: datetime,
    zone: ZoneInfo,
    policy: Policy | None = None,
) -> tuple[Judged, ...]:
    """Its leaves with what becomes of each, newest first; Refused where its plan says not what to keep.

    `policy`: this one instead of its plan's.
    """
    name = one.machine.name
    policy = policy or policy_of(name, one.sources)
    leaves = list(catalogue.standing_leaves(name, JUDGED_BY))
    return judge_leaves(leaves, elsewhere.get(name.casefold(), ()), policy, now, zone)


def ask(catalogue: Catalogue, one: Judged) -> Claim:
    """Ask for a deletion; LOST where somebody moved the leaf since it was read."""
    return catalogue.claim(one.leaf, Mode.DELETE, Report(NOW, message="", extra={Attribute.PRUNED: (one.why,)}))
