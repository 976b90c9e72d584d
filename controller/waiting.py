"""Waits for the leaves of one run: turns the cycle, and notes each machine as it ends. Called by the command `run`."""

import time
from collections.abc import Callable

from controller.cycle import Cycle
from controller.decide import View, is_ended, key_of
from controller.pruning import Pruner
from controller.report import Outcome
from controller.run import Choice, Started
from vmkeep.contract.errors import TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.pruning import is_being_deleted, was_refused


class Deletions:
    """What a run lets go. They end soon as a rule, and the cycle removes the leaves; else `serve` or the next run does.

    `seconds` is how long a run waits for them once its backups have ended.
    """

    def __init__(
        self, cycle: Cycle, pruner: Pruner, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cycle = cycle
        self._pruner = pruner
        self._seconds = seconds
        self._clock = clock
        self._asked: list[Leaf] = []
        self._until = 0.0
        self.is_behind = False  # there are machines that have not been judged yet
        pruner.when_asked = self._note

    def ask(self) -> None:
        """Ask for what goes of the machines whose backup has just ended well."""
        self.is_behind = self._pruner.turn(self._cycle.ended_well) == 0.0

    def remaining(self) -> float:
        """How many seconds to go on waiting; 0 where nothing is under way."""
        self._asked = [leaf for leaf in self._asked if self._is_under_way(leaf)]
        if self.is_behind:
            return self._seconds
        return max(0.0, self._until - self._clock()) if self._asked else 0.0

    def _is_under_way(self, leaf: Leaf) -> bool:
        fresh = self._cycle.catalogue.leaf(leaf.dn)
        return fresh is not None and (is_being_deleted(fresh) or was_refused(fresh))

    def _note(self, leaf: Leaf) -> None:
        self._asked.append(leaf)
        self._until = self._clock() + self._seconds


class Run:
    """One run under way. `say` hears of each machine once; `when_over` is called when all ended or time is up."""

    def __init__(
        self,
        cycle: Cycle,
        started: Started,
        say: Callable[[Outcome], None],
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        deletions: Deletions | None = None,
    ) -> None:
        self.when_over: Callable[[], None] = lambda: None
        self._cycle = cycle
        self._say = say
        self._deadline = deadline
        self._clock = clock
        self._choices = started.choices
        self._outcomes: dict[str, Outcome] = {}
        self._deletions = deletions
        for choice in started.choices:
            if not choice.leaf:
                self._ended(Outcome(choice))

    def turn(self) -> float | None:
        """One cycle of the loop."""
        if self._remaining() <= 0:
            # Time is up also when the directory is away and every turn ends in TryLater.
            self.when_over()
            return None
        view = self._cycle.turn()
        standing = {key_of(leaf) for leaf in view.leaves if not is_ended(leaf, self._cycle.bounds)}
        for choice in self._open():
            if choice.key not in standing:
                self._look_at(choice)
        if self._deletions:
            self._deletions.ask()
        remaining = self._remaining()
        if not self._open():
            remaining = min(remaining, self._deletions.remaining() if self._deletions else 0.0)
        if remaining <= 0:
            self.when_over()
            return None
        is_behind = self._deletions is not None and self._deletions.is_behind
        return 0.0 if is_behind else self._next(view, remaining)

    def close(self) -> tuple[Outcome, ...]:
        """Note what has not ended, and return everything in the run's order."""
        for choice in self._open():
            try:
                leaf = self._cycle.catalogue.leaf(choice.leaf)
            except TryLater as why:
                self._ended(Outcome(choice, trouble=f"its leaf cannot be read: {why}"))
                continue
            running = leaf is not None and not is_ended(leaf, self._cycle.bounds)
            self._ended(Outcome(choice, leaf, still_in_flight=running))
        return tuple(self._outcomes[choice.machine] for choice in self._choices)

    def _open(self) -> list[Choice]:
        return [choice for choice in self._choices if choice.machine not in self._outcomes]

    def _remaining(self) -> float:
        return self._deadline - self._clock()

    def _look_at(self, choice: Choice) -> None:
        """A leaf that was not among those in flight: ended, gone, or in the middle of a move by somebody else."""
        refused = self._cycle.refused.get(choice.key)
        if refused is not None:
            self._ended(Outcome(choice, refused[0], trouble=refused[1]))
            return
        leaf = self._cycle.catalogue.leaf(choice.leaf)
        if leaf is None or is_ended(leaf, self._cycle.bounds):
            self._ended(Outcome(choice, leaf))

    def _ended(self, outcome: Outcome) -> None:
        self._outcomes[outcome.choice.machine] = outcome
        self._say(outcome)

    def _next(self, view: View, remaining: float) -> float:
        due = self._cycle.seconds_to_next(view)
        return remaining if due is None else min(due, remaining)
