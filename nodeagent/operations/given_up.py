"""Backups of a machine that nobody can finish any more: their leaf is gone, or ended at the snapshot.

Asked by the survey of a snapshot, which clears what they left, and by who comes to report such a snapshot.
"""

from nodeagent.host.folders import names_in
from nodeagent.order import Order
from nodeagent.steps import Host
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode
from vmkeep.contract.timestamps import is_timestamp
from vmkeep.directory.catalogue import Catalogue


def given_up(catalogue: Catalogue, order: Order, host: Host, power: Power) -> dict[str, tuple[str, ...]]:
    """Timestamps of those that left something in retain, as fields of an order. `power` is the machine's now."""
    lying = tuple(filter(is_timestamp, names_in(order.paths.retain.parent, host.roots)))
    leaves = {leaf.timestamp: leaf for leaf in catalogue.leaves(order.machine)}
    failed = {timestamp: leaf for timestamp, leaf in leaves.items() if is_failed_snapshot(leaf)}
    return {
        "abandoned": tuple(timestamp for timestamp in lying if timestamp not in leaves or timestamp in failed),
        "unnoted": tuple(
            timestamp for timestamp in lying if timestamp in failed and _has_run_on(failed[timestamp], power)
        ),
    }


def _has_run_on(leaf: Leaf, power: Power) -> bool:
    """Whether the memory that the snapshot may have left is of the past; of a machine that is off it may be all."""
    return leaf.was_put_back and power is not Power.OFF


def is_failed_snapshot(leaf: Leaf) -> bool:
    """Whether a leaf ended at its snapshot: no set is made of it any more."""
    return leaf.is_failed and leaf.mode is Mode.SNAPSHOTTING
