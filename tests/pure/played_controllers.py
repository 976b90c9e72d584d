"""Controllers that serve one directory in memory, each stopped at will before and after every call to it.

Each runs in a thread of its own, one at a time: a step lets one go on to its next call. So every order of calls can be
played, with pauses as long as one likes, clocks that run apart, and answers that are lost.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeVar

import structlog

from controller.cycle import Cycle
from controller.decide import Bounds
from controller.lease import Lease, Leased
from controller.serving import Serving
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.modes import Mode, at_work, done
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.memory import MemoryStore
from vmkeep.directory.port import ANYTHING, Attributes, Claim, Entry, Filter, Scope, Watcher
from vmkeep.service.metrics import Metrics

T = TypeVar("T")
TREE = Tree("dc=example,dc=org")
MACHINES = ("a", "b")
START = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = Bounds(timedelta(seconds=600), timedelta(days=300), 3, timedelta(seconds=60))
LIMIT = 20.0


class Fate(Enum):
    """What becomes of a call."""

    ANSWERED = "answered"
    NOT_SENT = "not sent"
    ANSWER_LOST = "answer lost"


class Over(BaseException):
    """The play has ended; not to be caught by what is tested."""


@dataclass
class Directory:
    """What all share. `moves` are the epochs that leaves were moved by; `deciding` is the latest that began to."""

    time: float = 0.0
    memory: MemoryStore = field(default_factory=lambda: MemoryStore(TREE.suffix))
    deciding: int = 0
    late: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines, TREE.configuration):
            self.memory.add(dn, {"objectClass": ("organizationalUnit",)})
        for name in MACHINES:
            self.memory.add(TREE.machine(name), {"objectClass": (ObjectClass.MACHINE,)})
            self.memory.add(TREE.machine_plan(name), {"objectClass": ("organizationalUnit",)})

    def note_add(self, dn: str, attributes: Attributes) -> None:
        """A leaf by who was no longer to act is no fault; to move it would be."""
        self.late.discard(dn)
        if int(attributes[Attribute.EPOCH][0]) < self.deciding:
            self.late.add(dn)

    def note_move(self, dn: str, changes: Attributes) -> None:
        """Called at the moment at which a move by a controller takes place."""
        epoch = int(changes[Attribute.EPOCH][0])
        if epoch < self.deciding:
            self.faults.append(f"{dn} moved to {changes[Attribute.MODE]} by {epoch} in the time of {self.deciding}")
        if dn in self.late:
            self.faults.append(f"{dn} was added too late and was moved to {changes[Attribute.MODE]}")

    def agents_answer(self) -> None:
        """Every leaf that is asked for is done at once."""
        catalogue = Catalogue(self.memory, TREE)
        for leaf in list(catalogue.leaves()):
            if leaf.is_asked(START.date()) and leaf.mode:
                catalogue.claim(leaf, done(at_work(leaf.mode)), Report(to_timestamp(START)))


class PlayedStore:
    """A Store of one controller: before and after each call it waits to be let go on."""

    def __init__(self, directory: Directory, pause: Callable[[], Fate]) -> None:
        self._directory = directory
        self._memory = directory.memory
        self._pause = pause

    def _called(self, what: Callable[[], T]) -> T:
        fate = self._pause()
        if fate is Fate.NOT_SENT:
            raise TryLater("no answer; it was never sent")
        outcome = what()
        fate = self._pause() if fate is Fate.ANSWERED else fate
        if fate is not Fate.ANSWERED:
            raise TryLater("no answer; it was done")
        return outcome

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        return self._called(lambda: self._memory.read(dn, attributes))

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        yield from self._called(lambda: list(self._memory.search(base, matching, scope, attributes)))

    def add(self, dn: str, attributes: Attributes) -> bool:
        def add() -> bool:
            was_added = self._memory.add(dn, attributes)
            if was_added and Attribute.EPOCH in attributes:
                self._directory.note_add(dn, attributes)
            return was_added

        return self._called(add)

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        def claim() -> Claim:
            claim = self._memory.claim(dn, expected, changes, additions, provided)
            if claim is Claim.WON and Attribute.MODE in changes:
                self._directory.note_move(dn, changes)
            return claim

        return self._called(claim)

    def replace(self, dn: str, changes: Attributes) -> bool:
        return self._called(lambda: self._memory.replace(dn, changes))

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        return self._called(lambda: self._memory.delete(dn, provided))

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        return self._memory.watch(base, matching, wake, polls=polls)

    def close(self) -> None:
        self._memory.close()


class Player:
    """One controller; `rate` is how fast its clock runs. Each turn it adds a leaf too, as the schedule would."""

    def __init__(self, directory: Directory, number: int, rate: float, seconds: float) -> None:
        self.directory = directory
        self.rate = rate
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._fate = Fate.ANSWERED
        self._is_over = False
        self.bug: Exception | None = None
        store = PlayedStore(directory, self._pause)
        tokens = iter(range(1_000_000))
        self.lease = Lease(
            store,
            TREE,
            f"c{number}",
            seconds,
            clock=lambda: 1000 * number + rate * directory.time,
            now=lambda: START,
            token=lambda: f"c{number}-{next(tokens)}",
        )
        self.catalogue = Catalogue(Leased(store, self.lease), TREE, lambda: self.lease.epoch)
        log = structlog.wrap_logger(None, processors=[_drop])
        self.serving = Serving(self.lease, self.catalogue, self._begin, log, Metrics(), lambda _: None)
        self._thread = threading.Thread(target=self._run, name=f"controller {number}", daemon=True)
        self._thread.start()

    def step(self, fate: Fate = Fate.ANSWERED) -> None:
        """Go on to before or after the next call."""
        self._fate = fate
        self._go.release()
        assert self._paused.acquire(timeout=LIMIT)

    def end(self) -> None:
        self._is_over = True
        self._go.release()
        self._thread.join(LIMIT)

    def _pause(self) -> Fate:
        self._paused.release()
        assert self._go.acquire(timeout=LIMIT)
        if self._is_over:
            raise Over
        return self._fate

    def _run(self) -> None:
        try:
            self._go.acquire()
            while not self._is_over:
                with contextlib.suppress(TryLater, Refused):
                    self.serving.turn()
                self._pause()
        except Over:
            pass
        except Exception as why:  # noqa: BLE001 - shown by the test, in its own thread
            self.bug = why
        finally:
            self._paused.release()

    def _begin(self) -> Callable[[], float | None]:
        directory = self.directory
        directory.deciding = max(directory.deciding, self.lease.epoch)
        log = structlog.wrap_logger(None, processors=[_drop])
        cycle = Cycle(
            self.catalogue,
            BOUNDS,
            log,
            clock=lambda: START + timedelta(seconds=directory.time),
            elapsed=lambda: self.rate * directory.time,
        )

        def turn() -> float | None:
            wanted = cycle.turn_and_wait()
            for machine in MACHINES:
                if not any(leaf.mode is not Mode.FINISHED for leaf in self.catalogue.leaves(machine)):
                    now = to_timestamp(START + timedelta(seconds=int(directory.time)))
                    self.catalogue.add_leaf(machine, now, now)
            return wanted

        return turn


def _drop(_logger: object, _method: str, _event: object) -> str:
    raise structlog.DropEvent
