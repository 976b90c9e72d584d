"""Whose turn it is to run on: a saved machine waits, for a bounded time, until those of its group before it run.

Called by the steps of a snapshot. The machine comes first: a directory that does not answer, an agent that ends and the
time of the plan each end the waiting, and a restarted agent does not wait again.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nodeagent.order import Order
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.grouping import to_instant
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Catalogue

LONGEST = 600.0  # seconds; whatever a plan or a leaf says
OUT_OF_TURN = "it ran on out of turn"
_PAUSES = (0.01, 0.2)  # seconds between two looks, at first and at most
_LOOK_UP = 0.2  # seconds until an agent that is ended lets go


def _nobody() -> None:
    """Where no cycle waits to be woken."""


@dataclass(frozen=True)
class Turns:
    """Asks the directory. Without a `catalogue` there is nobody to ask. `wake` asks for a cycle of the agent.

    `waiting` are the machines that wait: they do nothing, and take up no room of their node. `since` is when this agent
    began, in seconds since the epoch.
    """

    catalogue: Catalogue | None = None
    wake: Callable[[], None] = _nobody
    waiting: set[str] = field(default_factory=set)
    since: float = field(default_factory=time.time)

    def wait(self, order: Order, stop: threading.Event) -> str:
        """Wait until the leaf lets the machine run on; "" where it does, else why it is not waited for any more."""
        if self.catalogue is None or not order.start_wait or order.start_wait < 0:
            return ""
        seconds = min(float(order.start_wait), LONGEST)
        answer: Future[str] = Future()
        # In a thread of its own: no answer of the directory, however late, keeps the machine waiting for longer.
        arguments = (self.catalogue, order.leaf_dn, time.monotonic() + seconds, answer)
        threading.Thread(target=_ask, args=arguments, name=f"turn of {order.machine}", daemon=True).start()
        self.waiting.add(order.machine)
        self.wake()
        try:
            return _answered(answer, seconds, stop)
        finally:
            self.waiting.discard(order.machine)

    def tell(self, order: Order, now: float) -> None:
        """Note on the leaf that the machine runs on, for those that wait for it."""
        if self.catalogue is None:
            return
        started: dict[str, tuple[str, ...]] = {Attribute.STARTED: (to_instant(datetime.fromtimestamp(now, UTC)),)}
        try:
            leaf = self.catalogue.leaf(order.leaf_dn)
            if leaf is not None and leaf.mode is order.mode and leaf.is_at_work:
                self.catalogue.note(leaf, started)
        except (TryLater, Refused):
            return  # the end of the step tells the same, only later


def _answered(answer: Future[str], seconds: float, stop: threading.Event) -> str:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop.is_set():
            return f"{OUT_OF_TURN}: the agent was ended"
        with suppress(TimeoutError):
            return answer.result(min(left, _LOOK_UP))
    return f"{OUT_OF_TURN}: others of its group were not running within {seconds:g} s (vmkeepStartWait)"


def _ask(catalogue: Catalogue, leaf_dn: str, until: float, answer: Future[str]) -> None:
    pause, longest = _PAUSES
    while time.monotonic() < until:
        try:
            wait = catalogue.start_wait(leaf_dn)
        except (TryLater, Refused) as why:
            answer.set_result(f"{OUT_OF_TURN}: the directory did not say whose turn it was ({why})")
            return
        if not wait:
            answer.set_result("")
            return
        time.sleep(pause)
        pause = min(pause * 2, longest)
