"""Whose a machine is by now, and whose the work on its leaf: asked before what may be another node's is touched.

A machine can be moved while work on it is at hand, and be started elsewhere while its node is down. Images on shared
storage belong to the node that runs it then, and a set to the node that took its leaf up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeagent.order import Order
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.directory.catalogue import Catalogue

_ASKED_AGAIN = "this is asked for again where it is"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_boot() -> str:
    """What tells this start of the host from every other."""
    return _BOOT.read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class Moves:
    """Asks the directory. Without a `catalogue` there is nobody to ask, and nothing moves."""

    catalogue: Catalogue | None = None
    node: str = ""
    boot: str = ""
    clock: Callable[[], float] = time.time

    def refuse_if_moved(self, order: Order) -> None:
        """Refused where the directory does not give the machine to this node; TryLater where it cannot be asked."""
        if self.catalogue is None:
            return
        machine = self.catalogue.machine_entry(order.machine)
        if machine is None or (machine.node or "").casefold() != self.node.casefold():
            raise moved(order.machine, self.node, machine.node if machine else None, _what_follows(order))

    def refuse_if_moved_over_a_boot(self, order: Order) -> None:
        """The same, for work begun before the host was started anew: it may have been given up for lost.

        A directory that cannot be asked says nothing: it may be a machine of this very node, to be brought up first.
        """
        if order.boot in ("", self.boot):
            return
        try:
            self.refuse_if_moved(order)
        except TryLater:
            return

    def refuse_if_given_up(self, order: Order) -> None:
        """Refused where the leaf was ended, or taken up by another node, since this work began.

        It is not shown to a node that has lost it. One that was deleted says nothing: the result is dropped. Nor does a
        directory that cannot be asked, for as long as the plan lets a step stand: nobody is given the work before that.
        """
        if self.catalogue is None:
            return
        try:
            is_ours = self._is_ours(self.catalogue, order)
        except TryLater:
            self._refuse_to_guess(order)
            return
        if not is_ours:
            raise Refused(
                ReturnValue.MOVED_AWAY,
                f"{order.machine}: {order.mode} of {order.timestamp} was ended by somebody else, or is another node's "
                "by now; nothing more is done to its set here",
            )

    def _refuse_to_guess(self, order: Order) -> None:
        """TryLater where the controller may have given the work to another node, and nobody can be asked."""
        if 0 < order.deadline <= self.clock() - order.started_at:
            raise TryLater(
                f"{order.machine}: the directory is silent, and {order.mode} of {order.timestamp} takes longer than "
                f"{order.deadline} s (vmkeepDeadline): it may be another node's by now; this waits for the directory"
            )

    def _is_ours(self, catalogue: Catalogue, order: Order) -> bool:
        """Whether the leaf says so, or is gone."""
        leaf = catalogue.leaf(order.leaf_dn)
        if leaf is None:
            if catalogue.machine_entry(order.machine) is None:
                return False
            leaf = catalogue.leaf(order.leaf_dn)  # the machine may have come to this node since, leaf and all
        return leaf is None or self._is_at(leaf, order)

    def _is_at(self, leaf: Leaf, order: Order) -> bool:
        return leaf.mode is order.mode and leaf.is_at_work and leaf.is_left_to(self.node)


def is_deleted(catalogue: Catalogue, order: Order) -> bool:
    """Whether a leaf that cannot be read is gone rather than out of sight: its machine is shown, and it still is not.

    Read again after the machine, which may come to this node between one reading and the other, leaf and all.
    """
    return catalogue.machine_entry(order.machine) is not None and catalogue.leaf(order.leaf_dn) is None


def _what_follows(order: Order) -> str:
    if order.mode is Mode.SNAPSHOTTING:
        return f"what it left in {order.paths.retain} goes with the machine's next backup"
    return _ASKED_AGAIN


def moved(machine: str, node: str, to: str | None, follows: str = _ASKED_AGAIN) -> Refused:
    """What to say on a node that a machine has left, or that the directory does not show it to any more."""
    where = f"is on {to or 'no node'} (sstNode)" if to is not None else "is not shown to this node by the directory"
    return Refused(
        ReturnValue.MOVED_AWAY,
        f"{machine} {where}, and {node} was at work on it: its images are not written to from here; {follows}",
    )
