"""The agent's cycle: read everything, take up what is this node's, report what is left over, note progress.

Called by the loop at every wake-up and at least every `reconcile_seconds`. What a killed agent left behind is found
in the same way as new work: an unfinished journal is gone on with before the directory is even asked.
"""

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from nodeagent.journal import Journal
from nodeagent.moves import is_deleted
from nodeagent.order import Order
from nodeagent.reporting import refuse_what_is_no_backup
from nodeagent.work import (
    PLANS,
    Counter,
    Workshop,
    clean_up_after_restore,
    end_after_a_bug,
    go_on,
    is_in_restore,
    leave_out_of_sight,
    take_up,
)
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.modes import Mode, at_work
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import STARTING_OR_WORKING, Report
from vmkeep.directory.port import Claim
from vmkeep.service.settings import LimitSettings

_AGAIN_SECONDS = 5.0
_STANDS_STILL = (Mode.SNAPSHOTTING, Mode.RESTORING)  # a machine may stand still in it


@dataclass
class Job:
    """One piece of work at hand. `leaf` is None while only the journal is known."""

    machine: str
    timestamp: str
    mode: Mode
    leaf: Leaf | None
    counter: Counter = field(default_factory=Counter)
    noted: int = 0
    noted_at: float = 0.0
    moved: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    is_silent: bool = False

    @property
    def key(self) -> tuple[str, str, Mode]:
        """What tells it from every other."""
        return self.machine, self.timestamp, self.mode


@dataclass(frozen=True)
class ProgressPace:
    """Least seconds between two notes of progress, and after how many without any that is told."""

    noted: float = 5.0
    silent: float = 600.0


class Agent:
    """Everything this node does. `wake` asks the loop for another cycle."""

    def __init__(
        self, shop: Workshop, node: str, limits: LimitSettings, pace: ProgressPace, wake: Callable[[], None]
    ) -> None:
        self._shop = shop
        self._node = node
        self._limits = {
            Mode.SNAPSHOTTING: limits.snapshots,
            Mode.MERGING: limits.merges,
            Mode.RETAINING: limits.retains,
            Mode.UNRETAINING_SMALL_FILES: limits.restores,
            Mode.UNRETAINING_LARGE_FILES: limits.restores,
            Mode.RESTORING: limits.restores,
            Mode.DELETING: limits.deletions,
        }
        self._pace = pace
        self._wake = wake
        self._kept: set[tuple[str, bool]] = set()  # leaves whose replaced files stay, and whether by request
        self._left: set[str] = set()  # leaves out of sight whose files stay
        self._waits: set[tuple[str, str]] = set()  # leaves that other nodes are at work on
        self._jobs: dict[tuple[str, str, Mode], Job] = {}
        self._not_before: dict[tuple[str, str, Mode], float] = {}
        self._told: dict[tuple[str, str, Mode], str] = {}  # why what rests could not be done
        self._lock = threading.Condition()  # notified when a job ends

    @property
    def is_busy(self) -> bool:
        """Whether any work is at hand."""
        with self._lock:
            return bool(self._jobs)

    def cycle(self) -> float | None:
        """One turn; returns the seconds until the next is wanted."""
        self._go_on_with_journals()
        self._clean_up_after_restores()  # first: a new restore finds retain empty
        for leaf in self._leaves():
            try:
                self._consider(leaf)
            except Refused as why:
                self._shop.log.error(why.sentence, machine=leaf.machine, leaf=leaf.timestamp)  # noqa: TRY400 - no bug
        self._note_progress()
        self._tell_of_silence()
        self._shop.metrics.cycles.inc()
        with self._lock:
            self._shop.metrics.show_modes(job.mode for job in self._jobs.values())
        return self._next_turn()

    def wait(self, seconds: float) -> bool:
        """Wait for the work at hand to end; False where it did not in time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._jobs, seconds)

    def wait_for_machines(self, seconds: float) -> None:
        """Wait for the work in which a machine may stand still."""
        with self._lock:
            self._lock.wait_for(lambda: all(job.mode not in _STANDS_STILL for job in self._jobs.values()), seconds)

    # finding work

    def _go_on_with_journals(self) -> None:
        """Machines first: a report may have to wait for the directory, a machine that stands still may not."""
        for journal in sorted(self._shop.journals.all(), key=_is_to_be_reported):
            order = journal.order
            job = Job(order.machine, order.timestamp, order.mode, None)
            at_once = _is_to_be_reported(journal) or job.mode in _STANDS_STILL
            if at_once or self._has_room(job.machine, job.mode):
                self._start(job, partial(go_on, self._shop, journal, job.counter))

    def _clean_up_after_restores(self) -> None:
        """Clear what is left of restores whose leaf has ended, was backed out or is gone; nobody asks for that."""
        unfinished = {(journal.order.machine, journal.order.timestamp) for journal in self._shop.journals.all()}
        for order in self._shop.host.unretained.all():
            try:
                self._consider_clearing(order, is_unfinished=(order.machine, order.timestamp) in unfinished)
            except Refused as why:
                self._shop.log.error(why.sentence, machine=order.machine, leaf=order.timestamp)  # noqa: TRY400 - no bug

    def _consider_clearing(self, order: Order, *, is_unfinished: bool) -> None:
        leaf = self._shop.catalogue.leaf(order.leaf_dn)
        keep_old = leaf is not None and leaf.wishes.keep_old
        is_kept = (order.leaf_dn, keep_old) in self._kept
        job = Job(order.machine, order.timestamp, Mode.FINISHED, None)
        if is_in_restore(leaf):
            self._kept -= {(order.leaf_dn, False), (order.leaf_dn, True)}
        elif is_kept or is_unfinished:
            return
        elif leaf is None and not is_deleted(self._shop.catalogue, order):
            if order.leaf_dn not in self._left:
                self._start(job, partial(self._leave, order))
        else:
            self._start(job, partial(self._clean_up, order, keep_old))

    def _leave(self, order: Order) -> None:
        leave_out_of_sight(self._shop, order)
        self._left.add(order.leaf_dn)

    def _clean_up(self, order: Order, keep_old: bool) -> None:
        if clean_up_after_restore(self._shop, order, keep_old=keep_old):
            self._kept -= {(order.leaf_dn, False), (order.leaf_dn, True)}
        else:
            self._kept.add((order.leaf_dn, keep_old))

    def _leaves(self) -> Iterator[Leaf]:
        """Leaves that ask for work or are at work, the oldest first, so that nobody starves."""
        leaves = self._shop.catalogue.leaves(matching=STARTING_OR_WORKING)
        # Who is to run on first is begun first: the others stand still until then.
        return iter(sorted(leaves, key=lambda leaf: (leaf.timestamp, bool(leaf.start_wait), leaf.machine)))

    def _consider(self, leaf: Leaf) -> None:
        """Take a leaf up if it is for this node; whatever is wrong with one leaf, the others go on."""
        mode = self._work_of(leaf)
        if mode is None or self._is_left_to_another(leaf):
            return
        self._recognize(leaf, mode)
        if not self._has_room(leaf.machine, mode) or not self._is_ours(leaf):
            return
        job = Job(leaf.machine, leaf.timestamp, mode, leaf)
        if leaf.is_at_work:
            self._start(job, partial(take_up, self._shop, leaf, job.counter))
        elif (claimed := self._claim(leaf, mode)) is not None:
            job.leaf = claimed
            self._start(job, partial(take_up, self._shop, claimed, job.counter))

    def _recognize(self, leaf: Leaf, mode: Mode) -> None:
        """A journal that is gone on with shows its progress as soon as its leaf is seen."""
        with self._lock:
            job = self._jobs.get((leaf.machine, leaf.timestamp, mode))
            if job is not None and job.leaf is None and leaf.is_at_work:
                job.leaf = leaf

    def _work_of(self, leaf: Leaf) -> Mode | None:
        """The mode of work a leaf is in or asks for, None where there is nothing to do for an agent of this version."""
        if leaf.is_at_work:
            return leaf.mode if leaf.mode in PLANS else None
        today = datetime.fromtimestamp(self._shop.host.wall_clock(), UTC).date()
        if leaf.mode is not None and leaf.is_asked(today):
            working = at_work(leaf.mode)
            return working if working in PLANS else None
        return None

    def _is_left_to_another(self, leaf: Leaf) -> bool:
        """Whether another node is at work on a leaf, whose machine was moved: what it began it ends, also later."""
        if not leaf.is_at_work or leaf.is_left_to(self._node):
            return False
        if (leaf.dn, leaf.node) not in self._waits and self._is_here(leaf):
            self._waits.add((leaf.dn, leaf.node))
            told = f"{leaf.machine} was moved here while {leaf.node} is at {leaf.mode}; left to {leaf.node} to end that"
            self._shop.log.info(told, machine=leaf.machine, leaf=leaf.timestamp)
        return True

    def _is_ours(self, leaf: Leaf) -> bool:
        return (leaf.is_at_work and bool(leaf.node)) or self._is_here(leaf)

    def _is_here(self, leaf: Leaf) -> bool:
        machine = self._shop.catalogue.machine_entry(leaf.machine)
        return machine is not None and (machine.node or "").casefold() == self._node.casefold()

    def _claim(self, leaf: Leaf, mode: Mode) -> Leaf | None:
        if mode is Mode.UNRETAINING_SMALL_FILES and leaf.return_value:
            refuse_what_is_no_backup(self._shop.catalogue, leaf, self._shop.host.wall_clock())
            return None
        outcome = self._shop.catalogue.claim(leaf, mode, Report(NOW, extra=_of_a_claim(leaf, self._node)))
        self._shop.metrics.claims.labels(outcome.value).inc()
        if outcome is Claim.LOST:
            return None
        self._shop.log.info(str(mode), machine=leaf.machine, leaf=leaf.timestamp)
        claimed = replace(leaf, raw_mode=mode.value, state=NOW, return_value=0, node=self._node, has_leaf_class=True)
        return replace(claimed, bytes_done=None, bytes_total=None, percent=None)

    # doing it

    def _has_room(self, machine: str, mode: Mode) -> bool:
        with self._lock:
            waiting = self._shop.host.turns.waiting  # for others, who may need this very room
            busy = Tally(job.mode for job in self._jobs.values() if job.machine not in waiting)
            return busy[mode] < self._limits[mode] and all(job.machine != machine for job in self._jobs.values())

    def _start(self, job: Job, work: Callable[[], None]) -> None:
        """Start a job in a thread of its own, unless it or another on the machine is at hand."""
        with self._lock:
            resting = self._not_before.get(job.key, 0.0) > time.monotonic()
            if resting or any(other.machine == job.machine for other in self._jobs.values()):
                return
            self._jobs[job.key] = job
        threading.Thread(target=self._run, args=(job, work), name=f"{job.mode} {job.machine}", daemon=True).start()

    def _run(self, job: Job, work: Callable[[], None]) -> None:
        try:
            work()
            self._told.pop(job.key, None)
        except (TryLater, Refused) as why:  # a refusal here is one of the report
            self._rest(job, why)
        except Exception as why:  # a worker's own last resort: the loop's catch-all cannot see other threads
            self._shop.log.exception("a bug ended this work", machine=job.machine, mode=job.mode)
            self._end_after_a_bug(job, why)
        finally:
            with self._lock:
                self._jobs.pop(job.key, None)
                self._lock.notify_all()
            self._wake()

    def _end_after_a_bug(self, job: Job, bug: Exception) -> None:
        try:
            end_after_a_bug(self._shop, job.key, job.leaf, bug)
        except (TryLater, Refused, OSError) as why:
            self._rest(job, why)

    def _rest(self, job: Job, why: Exception) -> None:
        """Come back to it; the same reason is told once."""
        if self._told.get(job.key) != str(why):
            self._told[job.key] = str(why)
            self._shop.log.warning(f"{why}; trying again", machine=job.machine, mode=job.mode)
        self._not_before[job.key] = time.monotonic() + _AGAIN_SECONDS

    # progress

    def _note_progress(self) -> None:
        """Bytes and percent of what is at work; not more often than the settings say."""
        now = time.monotonic()
        with self._lock:
            jobs = [job for job in self._jobs.values() if job.leaf is not None and job.counter.total]
        for job in jobs:
            if job.counter.done > job.noted and now - job.noted_at >= self._pace.noted:
                job.noted, job.noted_at = job.counter.done, now
                self._note(job)

    def _note(self, job: Job) -> None:
        assert job.leaf is not None
        done = min(job.counter.done, job.counter.total)
        changes: dict[str, Sequence[str]] = {
            Attribute.BYTES_DONE: (str(done),),
            Attribute.BYTES_TOTAL: (str(job.counter.total),),
            Attribute.PERCENT: (str(done * 100 // job.counter.total),),
        }
        self._write(job, changes)

    def _write(self, job: Job, changes: dict[str, Sequence[str]]) -> None:
        """Beside the work on a leaf: where it is refused, the work goes on."""
        assert job.leaf is not None
        try:
            if self._shop.catalogue.note(job.leaf, changes) is Claim.WON:
                job.leaf = replace(job.leaf, has_leaf_class=True)
        except Refused as why:
            self._shop.log.warning(why.sentence, machine=job.machine)

    def _tell_of_silence(self) -> None:
        """Say once of work that hangs: a mount or a daemon that does not answer blocks it, and no other machine's."""
        now = time.monotonic()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            if job.counter.done != job.moved:
                job.moved, job.moved_at, job.is_silent = job.counter.done, now, False
            elif not job.is_silent and now - job.moved_at >= self._pace.silent:
                job.is_silent = True
                self._tell_silent(job)
        self._shop.metrics.silent.set(sum(job.is_silent for job in jobs))

    def _tell_silent(self, job: Job) -> None:
        sentence = (
            f"{job.machine}: no progress in {job.mode} for {self._pace.silent:g} s; if a mount or libvirt hangs on "
            f"{self._node}, mend that: the work goes on by itself then"
        )
        self._shop.log.warning(sentence, machine=job.machine, mode=job.mode)
        if job.leaf is not None:
            self._write(job, {Attribute.MESSAGE: (sentence,)})

    def _next_turn(self) -> float | None:
        now = time.monotonic()
        self._not_before = {key: until for key, until in self._not_before.items() if until > now}
        return min(self._pace.noted, _AGAIN_SECONDS) if self.is_busy or self._not_before else None


def _is_to_be_reported(journal: Journal) -> bool:
    return journal.record.result is not None


def _of_a_claim(leaf: Leaf, node: str) -> dict[str, Sequence[str]]:
    """Whose the work is, and the progress of the step before taken away: a new one has made none yet."""
    figures = {
        Attribute.BYTES_DONE: leaf.bytes_done,
        Attribute.BYTES_TOTAL: leaf.bytes_total,
        Attribute.PERCENT: leaf.percent,
    }
    taken: dict[str, Sequence[str]] = {name: () for name, value in figures.items() if value is not None}
    return {**taken, Attribute.AT_NODE: (node,)}
