"""Carries an operation out over its journal: ended, skip; began, ask the host; neither, note, apply, note.

A refusal takes back what began, last step first. A world that is not ready is waited for, with bounds; a machine that
is down is waited for without. Called by the cycle in a worker, again and again until there is a result. A bug gets out
to the worker, which tells the journal; the next call takes back what began.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from nodeagent.host.copying import Stopped
from nodeagent.host.errors import HostFailure
from nodeagent.journal import Journal, Outcome
from nodeagent.steps import LEFT, Facts, Step
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import NOT_PUT_BACK


@dataclass(frozen=True)
class Patience:
    """How long a step is retried on the spot, and how often an operation is put off before it is given up."""

    seconds: float = 30.0
    postponements: int = 20


@dataclass(frozen=True)
class Runner:
    """Runs the steps of one operation. `clock` gives seconds since the epoch."""

    journal: Journal
    clock: Callable[[], float]
    patience: Patience = Patience()

    def run(self, steps: Sequence[Step]) -> Outcome:
        """Go on where the journal ends. TryLater where the world is not ready; call again."""
        record = self.journal.record
        if record.result is not None:
            return record.result
        if record.failure is None:
            self._forward(steps)
        if record.failure is not None:
            self._back(steps)
        outcome = record.failure or Outcome(int(ReturnValue.SUCCESS), self._remarks())
        self._end(outcome)
        return outcome

    def _end(self, outcome: Outcome) -> None:
        try:
            self.journal.result(replace(outcome, at=self.clock()))
        except OSError as why:
            raise TryLater(f"{self.journal.order.machine}: the result cannot be noted: {why}") from None

    def _forward(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.name in self.journal.record.ended:
                continue
            try:
                self._carry_out(step)
            except Refused as why:
                self.journal.failed(why.code, why.sentence)
                return
            except (HostFailure, OSError) as why:
                self.journal.failed(step.code, self._sentence(step, why))
                return
            except Stopped:
                raise  # the agent ends; the next start goes on, and nobody was kept waiting
            except TryLater as why:
                if self._is_postponed(step, why):
                    raise
                return

    def _carry_out(self, step: Step) -> None:
        facts = self._patiently(functools.partial(self._attempt, step))
        self.journal.ended(step.name, facts or {})

    def _attempt(self, step: Step) -> Facts:
        """What began is asked of the host before it is done again, also within one run."""
        if step.name in self.journal.record.began:
            facts = step.is_done(self._facts)
            if facts is not None:
                return facts
        else:
            self.journal.began(step.name, self.clock(), must=not step.guest_is_down)
        return step.apply(self._facts)

    def _back(self, steps: Sequence[Step]) -> None:
        """Take back what began. What cannot be taken back stays as it is, and the outcome says so."""
        for step in self._to_undo(steps):
            try:
                facts = self._patiently(functools.partial(self._undo, step))
            except (HostFailure, OSError, Refused) as why:
                self._remark_left(step, why)
                if step.guards_machine:
                    return
                continue
            if left := (facts or {}).get(LEFT):
                self._tell_left(str(left))
            self.journal.undone(step.name, facts or {})

    def _remark_left(self, step: Step, why: Exception) -> None:
        """Add to the failure what could not be taken back; where the machine hangs on it, come back first, bounded."""
        if step.guards_machine and self.journal.record.postponed < self.patience.postponements:
            self.journal.postponed(str(why))
            raise TryLater(f"{self.journal.order.machine} could not be put back as it was: {why}")
        self._tell_left(f"{step.doing}: {why}")

    def _tell_left(self, left: str) -> None:
        """Once, however often it is taken back."""
        failure = self.journal.record.failure
        assert failure is not None
        if f"({left})" not in failure.sentence:
            told = "" if NOT_PUT_BACK in failure.sentence else f"; and it {NOT_PUT_BACK} as it was"
            self.journal.failed(failure.code, f"{failure.sentence}{told} ({left})")

    def _undo(self, step: Step) -> Facts:
        return step.undo(self._facts)

    def _to_undo(self, steps: Sequence[Step]) -> Iterator[Step]:
        record = self.journal.record
        return (step for step in reversed(steps) if step.name in record.began and step.name not in record.undone)

    def _patiently(self, call: Callable[[], Facts | None]) -> Facts | None:
        retrying = Retrying(
            retry=retry_if_exception_type(TryLater) & retry_if_not_exception_type(Stopped),
            stop=stop_after_delay(self.patience.seconds),
            wait=wait_exponential_jitter(multiplier=0.05, max=2.0),
            reraise=True,
        )
        return retrying(call)

    def _is_postponed(self, step: Step, why: TryLater) -> bool:
        """Whether to come back later; where that has been said too often, the operation fails instead."""
        self.journal.postponed(str(why))
        if step.guest_is_down or self.journal.record.postponed < self.patience.postponements:
            return True
        self.journal.failed(step.code, self._sentence(step, why))
        return False

    def _remarks(self) -> str:
        """What an admin should know of a success: fall-backs and oddities, in the order they came up."""
        facts = self.journal.record.facts
        remarks = (self.journal.order.warning, *(facts.get(name, "") for name in ("warning", "turn", "stopped")))
        return "; ".join(str(remark) for remark in remarks if remark)

    def _sentence(self, step: Step, why: Exception) -> str:
        return f"{self.journal.order.machine}: could not {step.doing}: {why}"

    @property
    def _facts(self) -> Facts:
        record = self.journal.record
        return {**{f"{name}_began": at for name, at in record.began.items()}, **record.facts}
