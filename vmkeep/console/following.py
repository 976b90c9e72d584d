"""Follows one leaf for as long as its caller wants: woken by the directory, and looking anyway. Used by the commands.

Nothing is missed for good: every wake-up, and every few seconds without one, leads to a fresh read.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Self

from vmkeep.contract.errors import TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.directory.catalogue import LEAVES, Catalogue
from vmkeep.directory.port import Watcher

_LOOK_ANYWAY = 1.0


class TimeIsUp(TryLater):
    """What was waited for did not come within the time given; it may still come."""


class Following:
    """A watch on one machine's leaves; a context manager. `seconds` bounds all waiting together."""

    def __init__(
        self, catalogue: Catalogue, leaf: Leaf, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalogue = catalogue
        self._leaf = leaf
        self._seconds = seconds
        self._clock = clock
        self._deadline = clock() + seconds
        # SimpleQueue.put may be called from the watch's thread at any moment.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._watch: Watcher | None = None

    def __enter__(self) -> Self:
        base = self._catalogue.tree.machine_plan(self._leaf.machine)
        self._watch = self._catalogue.store.watch(base, LEAVES, lambda: self._wakes.put(None))
        return self

    def __exit__(self, *reason: object) -> None:
        if self._watch is not None:
            self._watch.close()

    def looks(self) -> Iterator[Leaf | None]:
        """The leaf now, and again after each change and every few seconds; None where it is gone.

        Raises TimeIsUp at the end; a directory that is away until then is waited for.
        """
        trouble = ""
        while True:
            try:
                with self._uninterrupted():
                    leaf = self._catalogue.leaf(self._leaf.dn)
                trouble = ""
                yield leaf
            except TryLater as why:
                trouble = f"; {why}"
            remaining = self._deadline - self._clock()
            if remaining <= 0:
                raise TimeIsUp(f"{self._leaf.machine}: not done within {self._seconds:g} s{trouble}")
            with self._uninterrupted():
                self._wait(min(remaining, _LOOK_ANYWAY))

    def patience_from_now(self) -> None:
        """Begin the time anew: a person's thinking is not the machine's doing."""
        self._deadline = self._clock() + self._seconds

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Ctrl-C is heard once this is over: inside the LDAP client it could be swallowed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard: list[int] = []

        def hear(signum: int, _frame: object) -> None:
            heard.append(signum)
            self._wakes.put(None)

        before = signal.signal(signal.SIGINT, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if heard:
            raise KeyboardInterrupt

    def _wait(self, seconds: float) -> None:
        try:
            self._wakes.get(timeout=seconds)
        except Empty:
            return
        while not self._wakes.empty():  # many wake-ups are one: the leaf is read afresh
            self._wakes.get()


class Standstill:
    """How long a leaf has stood as it is; a note is due once for each way it stands."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stands = ""
        self._since = clock()
        self._noted = False

    def is_due(self, leaf: Leaf, seconds: float) -> bool:
        """Whether the leaf has stood this long, and nobody was told yet."""
        stands = f"{leaf.raw_mode} {leaf.state}"
        if stands != self._stands:
            self._stands, self._since, self._noted = stands, self._clock(), False
        if self._noted or self._clock() - self._since < seconds:
            return False
        self._noted = True
        return True
