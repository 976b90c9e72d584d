"""The loop of a daemon: wake up, run one cycle, say how it went; the one place that catches everything.

The controller's `serve` and `run` and the agent's `serve` run in it. What a cycle raises decides what follows: TryLater
backs off and tries again, Refused is said in one sentence, anything else is a bug and logged with its traceback; the
loop goes on.
"""

import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType

from structlog.typing import FilteringBoundLogger

from vmkeep.contract.errors import Refused, TryLater
from vmkeep.service.readiness import Readiness

Cycle = Callable[[], float | None]


@dataclass(frozen=True)
class Pace:
    """How fast a loop turns, in seconds.

    `reconcile` is the longest wait between two cycles; after a failure the wait starts at `first_back_off` and doubles
    up to `longest_back_off`; a wake-up never makes a failed loop turn sooner than `least`.
    """

    reconcile: float
    first_back_off: float = 0.5
    longest_back_off: float = 30.0
    least: float = 0.2


class TooManyBugs(Exception):  # noqa: N818 - named for why the loop gave up
    """A loop that was told to give up met as many bugs in a row as it may; the last one is the cause."""


class Loop:
    """Runs `cycle` until stopped. A cycle returns in how many seconds it wants the next turn at the latest, or None."""

    def __init__(
        self,
        cycle: Cycle,
        pace: Pace,
        log: FilteringBoundLogger,
        readiness: Readiness | None = None,
        bugs_allowed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bugs_allowed` ends the loop after so many in a row; daemons leave it out and go on."""
        self._cycle = cycle
        self._pace = pace
        self._log = log
        self._readiness = readiness or Readiness(None, None)
        self._bugs_allowed = bugs_allowed
        self._clock = clock
        # SimpleQueue.put may be called from signal handlers and callbacks of other threads; Event.set may not.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._stopping = False
        self._failures = 0
        self._bugs = 0
        self.stopped_by: int | None = None

    def wake(self) -> None:
        """Ask for a cycle now; from any thread or signal handler."""
        self._wakes.put(None)

    def stop(self, by_signal: int | None = None) -> None:
        """End after the cycle at hand; from any thread, signal handler, or the cycle itself."""
        self._stopping = True
        self.stopped_by = self.stopped_by or by_signal
        self._wakes.put(None)

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the loop to end."""
        return self._stopping

    def run(self) -> None:
        """Turn until stopped."""
        self._readiness.ready("at work")
        while not self._stopping:
            self._drain()
            wanted = self._turn()
            if self._bugs == 0:
                self._readiness.alive()
            if not self._stopping:
                self._wait(wanted)
        self._readiness.stopping()

    def _turn(self) -> float:
        """One cycle; returns the seconds until the next."""
        try:
            wanted = self._cycle()
        except TryLater as why:
            self._bugs = 0
            return self._failed(f"{why}; trying again")
        except Refused as why:
            self._bugs += 1
            if self._bugs_allowed is not None:
                raise
            self._log.error(why.sentence, return_value=int(why.code))
            return self._failed(why.sentence, said=True)
        except Exception as why:  # the one catch-all of a daemon: a bug in one cycle must not end it
            self._bugs += 1
            self._log.exception("a bug ended this cycle; going on with the next")
            if self._bugs_allowed is not None and self._bugs >= self._bugs_allowed:
                raise TooManyBugs(f"{type(why).__name__}: {why}") from why
            return self._failed(f"a bug ended the last cycle: {type(why).__name__}; going on", said=True)
        if self._failures:
            self._log.info("works again")
            self._readiness.status("at work")
        self._failures = self._bugs = 0
        return self._pace.reconcile if wanted is None else min(max(wanted, 0.0), self._pace.reconcile)

    def _failed(self, sentence: str, *, said: bool = False) -> float:
        delay = min(self._pace.longest_back_off, self._pace.first_back_off * 2.0 ** min(self._failures, 16))
        # Many agents lose the same directory at once; they must not all come back in the same instant.
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, protects nothing
        self._failures += 1
        if not said:
            self._log.warning(sentence, seconds=round(delay, 1))
        self._readiness.status(sentence)
        return max(delay, self._pace.least)

    def _wait(self, seconds: float) -> None:
        start = self._clock()
        latest = start + seconds
        earliest = start + (self._pace.least if self._failures else 0.0)
        woken = False
        while not self._stopping and (now := self._clock()) < (earliest if woken else latest):
            woken = self._woken_within((earliest if woken else latest) - now) or woken
            if self._bugs == 0:
                self._readiness.alive()

    def _woken_within(self, seconds: float) -> bool:
        watchdog = self._readiness.watchdog_seconds
        try:
            self._wakes.get(timeout=min(seconds, watchdog / 3) if watchdog else seconds)
        except Empty:
            return False
        return True

    def _drain(self) -> None:
        """Many wake-ups before a cycle are one: the cycle reads everything afresh."""
        while not self._wakes.empty():
            self._wakes.get()


@contextmanager
def signals(loop: Loop) -> Iterator[None]:
    """SIGTERM and SIGINT end the loop cleanly, SIGHUP wakes it; as before afterwards. In the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        loop.stop(number)

    def wake(_number: int, _frame: FrameType | None) -> None:
        loop.wake()

    wanted = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: wake}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        with _woken_by_signals(loop):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _woken_by_signals(loop: Loop) -> Iterator[None]:
    """Wake the loop when a signal comes, in whichever thread.

    The system may hand a signal to any thread, the second of two for example; Python handles it in the main thread, and
    does not wake that one from its wait.
    """
    told, telling = socket.socketpair()
    telling.setblocking(False)
    before = signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
    teller = threading.Thread(target=_wake_when_told, args=(loop, told), name="signals", daemon=True)
    teller.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        telling.close()
        teller.join()
        told.close()


def _wake_when_told(loop: Loop, told: socket.socket) -> None:
    while told.recv(64):
        loop.wake()
