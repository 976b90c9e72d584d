"""Waits for the leaves of one run: turns the cycle, and notes each machine as it ends. Called by the command `run`."""

import time
from collections.abc import Callable

from controller.cycle import Cycle
from controller.decide import View, is_ended, key_of
from controller.report import Outcome
from controller.run import Choice, Started
from vmkeep.contract.errors import TryLater


class Run:
    """One run under way. `say` hears of each machine once; `when_over` is called when all ended or time is up."""

    def __init__(
        self,
        cycle: Cycle,
        started: Started,
        say: Callable[[Outcome], None],
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.when_over: Callable[[], None] = lambda: None
        self._cycle = cycle
        self._say = say
        self._deadline = deadline
        self._clock = clock
        self._choices = started.choices
        self._outcomes: dict[str, Outcome] = {}
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
        remaining = self._remaining()
        if not self._open() or remaining <= 0:
            self.when_over()
            return None
        return self._next(view, remaining)

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
