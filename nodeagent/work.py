"""One piece of work in its own thread: lock the machine, survey or take up the journal, run the steps, report.

Started by the cycle. Everything that goes wrong ends here: as a result in the journal, as a refusal on the leaf, or
as something to try again in a later cycle.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import names_in
from nodeagent.host.locks import machine_lock
from nodeagent.journal import Journal, Journals, Outcome
from nodeagent.moves import is_deleted
from nodeagent.operations.aside import before_directory, note_restored
from nodeagent.operations.cleaning import clean_up
from nodeagent.operations.deletion import delete
from nodeagent.operations.given_up import is_failed_snapshot
from nodeagent.operations.leftovers import abandon
from nodeagent.operations.merge import merge
from nodeagent.operations.restore import restore
from nodeagent.operations.retain import retain
from nodeagent.operations.snapshot import snapshot
from nodeagent.operations.survey import Surveyor
from nodeagent.operations.unretain import unretain_large_files, unretain_small_files
from nodeagent.order import Order
from nodeagent.reporting import refuse, report
from nodeagent.runner import Patience, Runner
from nodeagent.steps import Host, Step
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import NOT_PUT_BACK, Leaf
from vmkeep.contract.machine import check_name
from vmkeep.contract.modes import Mode, asked
from vmkeep.directory.catalogue import Catalogue
from vmkeep.service.metrics import Metrics

_KEPT_SECONDS = 7 * 86_400.0  # for a machine that left and may come back

PLANS: dict[Mode, Callable[[Order, Host], tuple[Step, ...]]] = {
    Mode.SNAPSHOTTING: snapshot,
    Mode.MERGING: merge,
    Mode.RETAINING: retain,
    Mode.UNRETAINING_SMALL_FILES: unretain_small_files,
    Mode.UNRETAINING_LARGE_FILES: unretain_large_files,
    Mode.RESTORING: restore,
    Mode.DELETING: delete,
}


@dataclass
class Counter:
    """Bytes an operation has moved; counted in its worker, read by the cycle."""

    total: int = 0
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, amount: int) -> None:
        """So many more."""
        with self._lock:
            self.done += amount


@dataclass(frozen=True)
class Workshop:
    """What every piece of work needs."""

    catalogue: Catalogue
    host: Host
    surveyor: Surveyor
    journals: Journals
    locks: Path
    patience: Patience
    log: FilteringBoundLogger
    metrics: Metrics = field(default_factory=Metrics)


def take_up(shop: Workshop, leaf: Leaf, counter: Counter) -> None:
    """Work on a leaf that is claimed by this node: with its journal if it has one, from a survey if not."""
    assert leaf.mode is not None
    try:
        check_name(leaf.machine)  # it is to name a lock and a journal
    except Refused as why:
        _refuse(shop, leaf, why)
        return
    with machine_lock(shop.locks, leaf.machine):
        if not _is_still_ours(shop, leaf):
            return
        journal = shop.journals.find(leaf.machine, leaf.timestamp, leaf.mode)
        if journal is None:
            _wait_for_others(shop, leaf)
            try:
                order = shop.surveyor.survey(leaf, leaf.mode)
            except Refused as why:
                _refuse(shop, leaf, why)
                return
            journal = shop.journals.create(order)
        _carry_out(shop, journal, counter)


def _wait_for_others(shop: Workshop, leaf: Leaf) -> None:
    """Nothing begins on a machine while other work on it, put off for now, is half done."""
    for other in shop.journals.all():
        if other.order.machine == leaf.machine and other.record.result is None:
            raise TryLater(f"{leaf.machine} is still at {other.order.mode} of {other.order.timestamp}")


def _refuse(shop: Workshop, leaf: Leaf, why: Refused) -> None:
    shop.log.warning(why.sentence, machine=leaf.machine, return_value=int(why.code))
    refuse(shop.catalogue, leaf, Outcome(int(why.code), why.sentence, shop.host.wall_clock()))
    if leaf.mode is not None:
        shop.metrics.count_failure(asked(leaf.mode), why.code)


def _is_still_ours(shop: Workshop, leaf: Leaf) -> bool:
    """Whether the leaf is at work as it was read; a worker may have reported and gone since."""
    fresh = shop.catalogue.leaf(leaf.dn)
    return fresh is not None and fresh.mode is leaf.mode and fresh.is_at_work


def go_on(shop: Workshop, journal: Journal, counter: Counter) -> None:
    """Work on what a journal says is unfinished, whether or not the directory answers."""
    with machine_lock(shop.locks, journal.order.machine):
        fresh = shop.journals.find(journal.order.machine, journal.order.timestamp, journal.order.mode)
        if fresh is None:
            return
        if fresh.record.result is None:
            _give_up_if_moved(shop, fresh)
        _carry_out(shop, fresh, counter)


def _give_up_if_moved(shop: Workshop, journal: Journal) -> None:
    """Neither go on nor take back: both write to images that the machine may run over elsewhere."""
    try:
        shop.host.moves.refuse_if_moved_over_a_boot(journal.order)
    except Refused as why:
        try:
            journal.result(Outcome(int(why.code), why.sentence, shop.host.wall_clock()))
        except OSError as full:
            raise TryLater(f"{journal.order.machine}: that it has moved cannot be noted: {full}") from None


def _carry_out(shop: Workshop, journal: Journal, counter: Counter) -> None:
    order = journal.order
    counter.total = order.bytes_total
    host = replace(shop.host, progress=counter.add)
    runner = Runner(journal, shop.host.wall_clock, shop.patience)
    runner.run(PLANS[order.mode](order, host))
    tell(shop, journal)


def tell(shop: Workshop, journal: Journal) -> None:
    """Report a journal's result, and count it once it is told. TryLater where the directory is away."""
    order, outcome = journal.order, journal.record.result
    assert outcome is not None, f"{journal.path} has no result yet"
    if order.mode is Mode.RESTORING and outcome.code == ReturnValue.SUCCESS:
        _note_restored(shop, order)
    leaf = shop.catalogue.leaf(order.leaf_dn)
    if leaf is None:
        _end_without_leaf(shop, journal)
        return
    if order.mode is Mode.SNAPSHOTTING and is_failed_snapshot(leaf):
        _abandon(shop, order)  # somebody ended it, and nobody asks for a snapshot again
    if not report(shop.catalogue, journal, leaf, shop.log):
        return
    if outcome.code == ReturnValue.SUCCESS:
        shop.metrics.steps.labels(asked(order.mode)).observe(outcome.at - order.started_at)
    else:
        shop.metrics.count_failure(asked(order.mode), outcome.code)


def _end_without_leaf(shop: Workshop, journal: Journal) -> None:
    """Nobody can finish a backup whose leaf was deleted. TryLater where the leaf may only be out of sight."""
    order, outcome = journal.order, journal.record.result
    assert outcome is not None, f"{journal.path} has no result yet"
    if not is_deleted(shop.catalogue, order):
        if shop.host.wall_clock() - outcome.at < _KEPT_SECONDS:
            raise TryLater(
                f"{order.machine}: the directory shows neither the machine nor its leaf {order.timestamp}; "
                f"it may have moved away. The result of {order.mode} is kept for a week, until one of them can be read"
            )
        shop.log.warning("nobody asked for this result for a week; it is dropped", machine=order.machine)
        journal.remove()
        return
    shop.log.warning("the leaf is gone; this result is dropped", machine=order.machine, leaf=order.timestamp)
    if order.mode in (Mode.SNAPSHOTTING, Mode.MERGING):
        _abandon(shop, order)
    journal.remove()


def _abandon(shop: Workshop, order: Order) -> None:
    try:
        shop.host.moves.refuse_if_moved(order)
        abandon(order, shop.host)
    except (HostFailure, OSError, Refused) as why:
        shop.log.error(  # noqa: TRY400 - no bug
            "what this backup left could not be cleared; the machine's next backup tries again",
            machine=order.machine,
            leaf=order.timestamp,
            left=str(order.paths.retain),
            why=str(why),
        )


def _note_restored(shop: Workshop, order: Order) -> None:
    try:
        note_restored(order, shop.host)
    except FileNotFoundError:
        return  # somebody removed what was kept
    except (HostFailure, OSError) as why:
        raise TryLater(f"{order.machine}: that it is restored cannot be noted: {why}") from None


def is_in_restore(leaf: Leaf | None) -> bool:
    """Whether a restore may use what lies in retain; a mode nobody knows may be some other tool's hold on it.

    One that is only asked for has brought nothing yet: what lies there is of an earlier one.
    """
    if leaf is None or leaf.mode is Mode.UNRETAIN_SMALL_FILES:
        return False
    return leaf.mode is None or leaf.is_in_restore


def leave_out_of_sight(shop: Workshop, order: Order) -> None:
    """Leave what lies there to a person where neither leaf nor machine can be read; forget it where nothing lies there.

    They may be gone, but also hidden, or another node's by now, who may use these very files.
    """
    try:
        left = names_in(order.paths.retain, shop.host.roots)
    except (HostFailure, OSError) as why:
        raise TryLater(f"{order.machine}: {order.paths.retain} cannot be looked at: {why}") from None
    if not left:
        shop.host.unretained.forget(order)
        return
    shop.log.warning(
        "not removed: the directory shows neither the leaf nor the machine of this restore; the machine may be another "
        "node's by now, and restored there: set sstNode to this node once that is over, or remove it by hand then",
        machine=order.machine,
        leaf=order.timestamp,
        left=str(order.paths.retain),
    )


def clean_up_after_restore(shop: Workshop, order: Order, *, keep_old: bool) -> bool:
    """Clear what a restore left in retain; True where nothing is left. TryLater where the machine is worked on."""
    with machine_lock(shop.locks, order.machine):
        if is_in_restore(shop.catalogue.leaf(order.leaf_dn)):
            return True  # asked for again meanwhile
        try:
            is_cleared = clean_up(order, shop.host, keep_old=keep_old)
        except (HostFailure, OSError) as why:
            raise TryLater(f"{order.machine}: {order.paths.retain} cannot be cleared: {why}") from None
    names = {"machine": order.machine, "leaf": order.timestamp, "kept": str(before_directory(order))}
    if is_cleared or keep_old:
        shop.log.info("cleared after a restore", keeps_old=not is_cleared, **names)
    else:
        shop.log.warning("not removed: what a restore replaced and could not put back; do that by hand", **names)
    return is_cleared


def end_after_a_bug(shop: Workshop, job: tuple[str, str, Mode], leaf: Leaf | None, why: Exception) -> None:
    """Tell the journal, or the leaf where there is none yet, of a failing that nobody foresaw.

    `job` is machine, timestamp and mode. The journal's next going on takes back what began, for a machine may stand
    still. TryLater where taking back is what failed: come back later, until patience ends.
    """
    machine, *_ = job
    with machine_lock(shop.locks, machine):
        journal = shop.journals.find(*job)
        if journal is not None:
            _tell_journal(shop, journal, why)
        elif leaf is not None:
            refuse(shop.catalogue, leaf, refusal_of_a_bug(machine, why, shop.host.wall_clock()))
            shop.metrics.count_failure(asked(job[2]), ReturnValue.UNDEFINED_ERROR)


def _tell_journal(shop: Workshop, journal: Journal, why: Exception) -> None:
    record, at = journal.record, shop.host.wall_clock()
    told = refusal_of_a_bug(journal.order.machine, why, at)
    if record.result is not None:
        raise TryLater(f"{journal.order.machine}: the result could not be reported")
    if record.failure is None:
        journal.failed(told.code, told.sentence)
    elif record.postponed < shop.patience.postponements:
        journal.postponed(told.sentence)
        raise TryLater(f"{journal.order.machine} could not be put back as it was")
    else:
        left = f"{record.failure.sentence}; and it {NOT_PUT_BACK} as it was ({told.sentence})"
        journal.result(Outcome(record.failure.code, left, at))


def refusal_of_a_bug(machine: str, why: Exception, at: float) -> Outcome:
    """What a leaf is told of a failing that nobody foresaw."""
    return Outcome(int(ReturnValue.UNDEFINED_ERROR), f"{machine}: {type(why).__name__}: {why}; see the agent's log", at)
