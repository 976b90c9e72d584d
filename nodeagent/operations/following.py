"""What work on a machine sees to where that was moved: that the machine is still here, its set, and the work ours.

A machine that is off here may run elsewhere, over the same image. And a node may see a machine's images and not the
retain directory that another node laid the set into. Called by the surveys, by retain, and by what writes to images.
"""

import time
from collections.abc import Callable
from pathlib import PurePosixPath

from nodeagent.host.copying import Stopped
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.operations.making import NAME as MAKING_NAME
from nodeagent.order import Order
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode

_LOOK_SECONDS = 5.0  # so long two nodes may be at one set, each with files of its own
# A directory that answers slowly holds a copy up by no more than a tenth, and is asked now and then all the same.
_RARER, _LONGEST_SECONDS = 10, 300.0


def refuse_if_gone(order: Order, host: Host, view: View | None) -> None:
    """Refused before a merge writes to an image of a machine that does not run here and may run elsewhere.

    A snapshot is not asked: whoever it holds down comes up again here, whatever the directory says by now.
    """
    if order.mode is not Mode.MERGING or (view is not None and view.is_active):
        return
    if view is None or view.moved_away:
        what = "knows it no more" if view is None else "says that it moved away"
        raise Refused(
            ReturnValue.MOVED_AWAY,
            f"{order.machine}: libvirt on {host.node} {what}: its images are not written to from here; "
            "set sstNode to where it is defined, and ask for merge again",
        )
    host.moves.refuse_if_moved(order)


class StillOurs:
    """Is told of progress while a set is carried, and asks now and then whether the leaf is still this node's work.

    A large file takes hours; whoever was given the leaf meanwhile writes to the same set. Where nobody can be asked and
    it may be another's by now, it waits in place: what is half copied stays, and a silence is no failed attempt.
    """

    def __init__(self, order: Order, host: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self._order = order
        self._host = host
        self._clock = clock
        self._due = clock() + _LOOK_SECONDS

    def __call__(self, amount: int) -> None:
        """Pass it on; Refused where the work is another node's by now, Stopped where the agent ends meanwhile."""
        self._host.progress(amount)
        if self._clock() >= self._due:
            self.ask()

    def ask(self) -> None:
        """The same at once."""
        begun = self._clock()
        while not self._may_go_on():
            if self._host.stop.wait(_LOOK_SECONDS):
                raise Stopped("waiting for the directory was stopped; it goes on when the work is taken up")
            begun = self._clock()
        took = self._clock() - begun
        self._due = self._clock() + min(max(_LOOK_SECONDS, _RARER * took), _LONGEST_SECONDS)

    def _may_go_on(self) -> bool:
        """Whether work may go on; False where that cannot be known now."""
        try:
            self._host.moves.refuse_if_given_up(self._order)
        except TryLater:
            return False
        return True


def to_be_merged(order: Order, leaf: Leaf, host: Host) -> Order:
    """The order of a merge that lacks its notes, with where they lie; Refused where an image lies over what is unseen.

    Over such an image nothing runs here. Elsewhere the set can still be had.
    """
    if not order.unmade or not _is_of_another(leaf, host):
        return order
    for disk in order.disks:
        backing = host.header(PurePosixPath(disk.path)).backing_file
        if backing is not None and not _is_there(backing, host):
            raise Refused(
                ReturnValue.SET_ELSEWHERE,
                f"{order.machine}: the image {disk.path} lies over {backing}, which {leaf.set_node} laid there and "
                f"{host.node} does not see; do not start the machine on {host.node}: {_how_to_go_on(order, leaf)}",
            )
    return order.model_copy(update={"unmade": f"{order.unmade}; {leaf.set_node} laid it there, {host.node} sees none"})


def refuse_unseen_set(order: Order, leaf: Leaf, host: Host) -> None:
    """Refused where a set that is to be carried was laid into retain by another node, and is not seen here."""
    notes = order.paths.retain / MAKING_NAME
    if order.published or not _is_of_another(leaf, host) or _is_there(str(notes), host):
        return
    raise Refused(
        ReturnValue.SET_ELSEWHERE,
        f"{order.machine}: its set {order.timestamp} lies in {order.paths.retain} on {leaf.set_node}, and {host.node} "
        f"does not see it; the machine is whole and needs nothing of it: {_how_to_go_on(order, leaf)}",
    )


def _how_to_go_on(order: Order, leaf: Leaf) -> str:
    step = "merge" if order.mode is Mode.MERGING else "retain"
    with_it = "move the machine back there, set" if order.mode is Mode.MERGING else "set"
    until = "" if order.mode is Mode.MERGING else " (until the leaf is finished; the machine runs on where it is)"
    return (
        f"mount that directory here, or {with_it} sstNode to {leaf.set_node}{until}; "
        f"then ask for {step} again (mode {step}, State 0, ReturnValue 0)"
    )


def _is_of_another(leaf: Leaf, host: Host) -> bool:
    return leaf.set_node.casefold() not in ("", host.node.casefold())


def _is_there(path: str, host: Host) -> bool:
    try:
        host.header(PurePosixPath(path))
    except FileNotFoundError:
        return False
    except HostFailure:
        return True  # whatever it is, it is seen
    return True
