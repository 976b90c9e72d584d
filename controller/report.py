"""What `run` prints: a line a machine, a summary, and the exit code. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.run import Choice, Fate
from vmkeep.contract.codes import meaning_of
from vmkeep.contract.grouping import is_inconsistent
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.timestamps import from_timestamp, is_timestamp

ALL_FINISHED = 0
NONE_FINISHED = 1
SOME_FAILED = 3


@dataclass(frozen=True)
class Outcome:
    """How one machine of a run ended. `leaf` as read at the end; None where there is none (any more)."""

    choice: Choice
    leaf: Leaf | None = None
    still_in_flight: bool = False
    trouble: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether there is a good backup."""
        return self.leaf is not None and self.leaf.is_good_backup

    @property
    def counts(self) -> bool:
        """Machines that are left out on purpose do not."""
        return self.choice.fate is not Fate.EXCLUDED


def line(outcome: Outcome) -> str:
    """One machine's line."""
    aside = f" ({outcome.choice.sentence})" if outcome.choice.fate is Fate.TAKEN_ON else ""
    return f"{outcome.choice.machine}: {_what(outcome)}{aside}"


def summary(timestamp: str, outcomes: Sequence[Outcome]) -> str:
    """The line of the morning."""
    counted = [outcome for outcome in outcomes if outcome.counts]
    finished = [outcome for outcome in counted if outcome.is_finished]
    parts = [f"{len(finished)} of {len(counted)} machines finished"]
    downtimes = [seconds for outcome in finished if outcome.leaf and (seconds := outcome.leaf.duration("downtime"))]
    if downtimes:
        parts.append(f"downtime {statistics.median(downtimes):.1f} s median, {max(downtimes):.1f} s longest")
    running = sum(outcome.still_in_flight for outcome in counted)
    failed = len(counted) - len(finished) - running
    left_out = len(outcomes) - len(counted)
    parts += [f"{number} {what}" for number, what in ((failed, "failed"), (running, "still running")) if number]
    parts += [f"{left_out} left out"] if left_out else []
    return f"{timestamp}: {', '.join(parts)}"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 when all that count are finished (also when all are left out on purpose), 1 when none is, else 3.

    No machine at all is 1: most likely the suffix is wrong, and a night without a backup must not look like success.
    """
    counted = [outcome.is_finished for outcome in outcomes if outcome.counts]
    if not outcomes:
        return NONE_FINISHED
    if all(counted):
        return ALL_FINISHED
    return SOME_FAILED if any(counted) else NONE_FINISHED


def _what(outcome: Outcome) -> str:
    choice, leaf = outcome.choice, outcome.leaf
    if choice.fate is Fate.EXCLUDED:
        return f"left out, {choice.sentence}"
    if choice.fate is Fate.REFUSED:
        return f"failed, return value {int(choice.code)} ({choice.code.meaning}): {choice.sentence}"
    if outcome.trouble:
        return f"failed, {outcome.trouble}"
    if leaf is None:
        return f"failed, its leaf {choice.leaf} is gone: somebody deleted it"
    if outcome.still_in_flight:
        return f"still {leaf.raw_mode}, leaf {leaf.timestamp}; `vmkeep-controller serve` or the next run takes it on"
    if leaf.is_good_backup:
        return f"finished{_figures(leaf, choice.begun)}"
    message = f": {leaf.message}" if leaf.message else ""
    return f"failed in {leaf.raw_mode}, return value {leaf.return_value} ({meaning_of(leaf.return_value)}){message}"


def _figures(leaf: Leaf, begun: datetime | None) -> str:
    figures = []
    if (downtime := leaf.duration("downtime")) is not None:
        figures.append(f"downtime {downtime:.3f} s")
    if is_timestamp(leaf.state):
        # A slot that is caught up began long after it was planned.
        since = max(leaf.planned, begun.replace(microsecond=0)) if begun else leaf.planned
        figures.append(f"duration {(from_timestamp(leaf.state) - since).total_seconds():.0f} s")
    if leaf.group:
        figures.append(f"group {leaf.group} {leaf.group_consistency or 'not judged'}{_spread(leaf)}")
    return "".join(f", {figure}" for figure in figures) + (f" ({leaf.message})" if leaf.message else "")


def _spread(leaf: Leaf) -> str:
    return f" within {leaf.group_spread} s" if leaf.group_spread and not is_inconsistent(leaf.group_consistency) else ""
