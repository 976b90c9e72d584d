"""What several controllers that serve do about each other: one acts, the rest stand by. Called by `serve` and `run`.

Whoever gets the lease marks every leaf in flight with its epoch before it decides anything; from then on nothing that
an earlier holder still had in its hands is written. A `run` needs no lease: it is the guest of whoever has it.
"""

import os
import secrets
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias

from prometheus_client import Gauge
from structlog.typing import FilteringBoundLogger

from controller.cycle import read_view
from controller.lease import Lease, LeaseLost
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import ObjectClass, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.lease import read_lease
from vmkeep.directory.port import Claim, Equals, Store
from vmkeep.service.metrics import Metrics

Turn: TypeAlias = Callable[[], float | None]

LEASES = Equals("objectClass", ObjectClass.LEASE)


def holder_of_this_process(name: str | None) -> str:
    """A name no other process has, nor this one after a restart."""
    return f"{name or _host_name()}:{os.getpid()}:{secrets.token_hex(4)}"


def _host_name() -> str:
    return socket.gethostname().encode("ascii", "replace").decode().replace(":", "-") or "unnamed"


class Serving:
    """The turns of one controller that serves, with the lease and without. `begin` makes the turns of a new tenure.

    A context manager: at the end the lease is given back. `tell` is what the service manager is told.
    """

    def __init__(
        self,
        lease: Lease,
        catalogue: Catalogue,
        begin: Callable[[], Turn],
        log: FilteringBoundLogger,
        metrics: Metrics,
        tell: Callable[[str], None],
    ) -> None:
        self._lease = lease
        self._catalogue = catalogue
        self._begin = begin
        self._log = log
        self._tell = tell
        leader = Gauge("vmkeep_controller_leader", "1 on the controller that acts", registry=metrics.registry)
        leader.set_function(lambda: float(lease.is_held))  # also while the directory is away and no turn ends
        self._epoch = Gauge("vmkeep_controller_epoch", "Epoch of its last tenure", registry=metrics.registry)
        self._turn: Turn | None = None
        self._begun = 0  # the epoch that `_turn` is of
        self._acts = False
        self._said = ""

    def turn(self) -> float:
        """For the loop: act or stand by; in how many seconds to come again."""
        try:
            if not self._lease.attend():
                return self._stand_by()
            wanted = self._act()
        except LeaseLost as why:
            self._end_tenure(str(why))
            return 0.0
        return self._lease.next_look if wanted is None else min(wanted, self._lease.next_look)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lease.give_back():
                self._log.info(f"gave the lease back, epoch {self._lease.epoch}")
        except (TryLater, Refused) as why:
            self._log.warning(f"the lease could not be given back, the others wait until it runs out: {why}")

    def _act(self) -> float | None:
        epoch, marked = self._lease.epoch, 0
        # Where the time only ran out and nobody came, all was marked before; what is unmarked now came too late.
        if self._turn is None or self._begun != epoch:
            self._epoch.set(epoch)
            marked = mark_all(self._catalogue, epoch, self._log)
            self._turn, self._begun = self._begin(), epoch
        if not self._acts:
            self._acts, self._said = True, ""
            self._log.info(f"acts: has the lease, epoch {epoch}", marked=marked)
            self._tell(f"at work: has the lease, epoch {epoch}")
        return self._turn()

    def _stand_by(self) -> float:
        self._end_tenure("the lease has gone to another controller")
        other = self._lease.other
        sentence = f"stands by: {other.holder} acts, epoch {other.epoch}" if other.holder else "stands by"
        if sentence != self._said:
            self._log.info(sentence)
        self._said = sentence
        self._tell(sentence)
        return self._lease.next_look

    def _end_tenure(self, why: str) -> None:
        if self._acts:
            self._log.warning(f"acts no more: {why}", epoch=self._begun)
        self._acts = False


def mark_all(catalogue: Catalogue, epoch: int, log: FilteringBoundLogger) -> int:
    """Write a new tenure's epoch on every leaf in flight; how many were marked.

    A leaf that was only added, and not in the tenure just before, is left to be removed: its controller stood still
    for long, and nobody knows what became of its time meanwhile.
    """
    wanted = [leaf for leaf in read_view(catalogue).leaves if _is_to_be_marked(leaf, epoch)]
    return sum(_is_marked(catalogue, leaf, log) for leaf in wanted)


def _is_marked(catalogue: Catalogue, leaf: Leaf, log: FilteringBoundLogger) -> bool:
    try:
        return catalogue.mark(leaf) is Claim.WON
    except Refused as why:
        # No controller can move such a leaf, so none can be late with it; the others must not wait for it.
        log.warning(f"{leaf.machine}: {leaf.timestamp} cannot be marked: {why.sentence}", return_value=int(why.code))
        return False


def _is_to_be_marked(leaf: Leaf, epoch: int) -> bool:
    if leaf.epoch is None or leaf.epoch == epoch - 1:
        return True
    return leaf.epoch < epoch and leaf.mode is not Mode.INITIALIZE


class Guest:
    """What a `run` writes with: the epoch of whoever has the lease, looked up before each turn."""

    def __init__(self, store: Store, tree: Tree) -> None:
        self._epoch: int | None = None
        self.catalogue = Catalogue(store, tree, lambda: self._epoch)

    def before(self, turn: Turn) -> Turn:
        """The same turn, by the epoch of its time."""

        def with_the_epoch() -> float | None:
            entry = read_lease(self.catalogue.store, self.catalogue.tree)
            self._epoch = entry.epoch or None if entry else None
            return turn()

        return with_the_epoch
