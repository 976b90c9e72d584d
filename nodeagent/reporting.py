"""Tells the directory how an operation came out: one claim with mode, state, return value, message and figures.

The journal keeps the result until this has gone through, so a directory that is away loses nothing. Called by
workers.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from nodeagent.journal import Fact, Journal, Outcome
from vmkeep.contract.codes import ReturnValue, meaning_of
from vmkeep.contract.grouping import to_instant
from vmkeep.contract.leaf import Leaf, with_duration
from vmkeep.contract.modes import Mode, asked, done
from vmkeep.contract.names import Attribute
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue, Report
from vmkeep.directory.port import Claim

_MOST_MESSAGE = 2000
_LET_GO: dict[str, Sequence[str]] = {Attribute.AT_NODE: ()}  # whose node is at work on the leaf


def report(catalogue: Catalogue, journal: Journal, leaf: Leaf, log: FilteringBoundLogger) -> bool:
    """Report a journal's result on its leaf and let the journal go; whether it was told.

    TryLater where the directory is away.
    """
    order, outcome = journal.order, journal.record.result
    assert outcome is not None, f"{journal.path} has no result yet"
    is_told = False
    if leaf.mode is not order.mode or not leaf.is_at_work or not leaf.is_left_to(order.node):
        found = f"at {leaf.raw_mode} with {leaf.return_value}"
        log.warning("the leaf was changed by somebody else; this result is dropped", found=found, **_names(journal))
    elif _claim(catalogue, leaf, journal, outcome) is Claim.WON:
        log.info(_said(order.mode, outcome), return_value=outcome.code, message=outcome.sentence, **_names(journal))
        is_told = True
    else:
        log.warning("somebody else moved the leaf in this moment; this result is dropped", **_names(journal))
    journal.remove()
    return is_told


def refuse(catalogue: Catalogue, leaf: Leaf, outcome: Outcome) -> Claim:
    """Report that a claimed leaf cannot be worked on; nothing was touched."""
    assert leaf.mode is not None
    state = to_timestamp(datetime.fromtimestamp(outcome.at, UTC))
    return catalogue.claim(leaf, leaf.mode, Report(state, outcome.code, _printable(outcome.sentence), _LET_GO))


def refuse_what_is_no_backup(catalogue: Catalogue, leaf: Leaf, at: float) -> Claim:
    """Report that a restore was asked for on a leaf that never was a good backup; the claim and its end in one."""
    sentence = (
        f"{leaf.machine}: {leaf.timestamp} is no good backup: its return value is {leaf.return_value} "
        f"({meaning_of(leaf.return_value)}); restore from a leaf that is finished with 0"
    )
    state = to_timestamp(datetime.fromtimestamp(at, UTC))
    report = Report(state, int(ReturnValue.WRONG_STATE_INFORMATION), sentence)
    return catalogue.claim(leaf, Mode.UNRETAINING_SMALL_FILES, report)


def _claim(catalogue: Catalogue, leaf: Leaf, journal: Journal, outcome: Outcome) -> Claim:
    if outcome.code != ReturnValue.SUCCESS:
        return refuse(catalogue, leaf, outcome)
    state = to_timestamp(datetime.fromtimestamp(outcome.at, UTC))
    figures = _figures(leaf, journal, outcome)
    message = _printable(outcome.sentence)
    return catalogue.claim(leaf, done(journal.order.mode), Report(state, 0, message, figures))


def _figures(leaf: Leaf, journal: Journal, outcome: Outcome) -> dict[str, Sequence[str]]:
    order, facts = journal.order, journal.record.facts
    times = with_duration(leaf.execution_times, asked(order.mode), outcome.at - order.started_at)
    figures: dict[str, Sequence[str]] = {}
    if "downtime" in facts:
        times = with_duration(times, "downtime", float(facts["downtime"]))
    if order.bytes_total:
        total = str(order.bytes_total)
        figures |= {Attribute.BYTES_DONE: (total,), Attribute.BYTES_TOTAL: (total,), Attribute.PERCENT: ("100",)}
    if order.mode is Mode.RETAINING:
        figures[Attribute.SET_DIRECTORY] = (str(order.paths.backup),)
    if order.mode is Mode.SNAPSHOTTING:
        figures[Attribute.INSTANT] = _instant(facts)
        figures |= {Attribute.METHOD: (order.method.value,), Attribute.SET_NODE: (order.node,) if order.node else ()}
    if order.mode is Mode.UNRETAINING_SMALL_FILES:
        figures[Attribute.SET_NODE] = (order.node,) if order.node else ()
        figures[Attribute.CONFLICTS] = (order.set.conflicts,)
        figures[Attribute.SET_DIRECTORY] = (order.set.set_directory,)
    if order.mode is Mode.UNRETAINING_LARGE_FILES and order.set.ldif:
        figures[Attribute.ENTRY] = (order.set.ldif,)
    told = (
        (Attribute.SIZE, "size"),
        (Attribute.CONSISTENCY, "consistency"),
        (Attribute.MANIFEST_DIGEST, "manifest_digest"),
    )
    figures |= {attribute: (str(facts[fact]),) for attribute, fact in told if fact in facts}
    return {**figures, **_LET_GO, Attribute.EXECUTION_TIME: times}


def _instant(facts: Mapping[str, Fact]) -> tuple[str, ...]:
    """When the machine stood as it was saved; none where the agent was killed and does not know."""
    found = facts.get("instant", facts.get("down_at"))
    return () if found is None else (to_instant(datetime.fromtimestamp(float(found), UTC)),)


def _said(mode: Mode, outcome: Outcome) -> str:
    return (
        str(done(mode)) if outcome.code == ReturnValue.SUCCESS else f"{asked(mode)} failed: {meaning_of(outcome.code)}"
    )


def _names(journal: Journal) -> dict[str, str]:
    return {"machine": journal.order.machine, "leaf": journal.order.timestamp, "mode": journal.order.mode}


def _printable(sentence: str) -> str:
    """What the directory takes as a string, on one line; file names may hold any bytes, and QEMU says several lines."""
    return " ".join(sentence.encode("utf-8", "replace").decode().split())[:_MOST_MESSAGE]
