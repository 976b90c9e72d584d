"""Loses power at every moment of a run, in every way the model of the disk knows, and has the product recover.

A world acts, knows what was true at a moment (its witness), is left with what a state of the disk holds, recovers by
the product's own ways and is looked at. Some recoveries lose power again.
"""

import os
import random
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from nodeagent.journal import Journal, Journals
from nodeagent.order import Order
from nodeagent.runner import Patience, Runner
from nodeagent.steps import Step
from tests.crash_states.recording import Loss, Recorder, tree
from vmkeep.contract.errors import TryLater

AGAIN = 25  # one recovery in so many loses power again, twice each
_SEED = 20261121


class World(Protocol):
    """What is lost and recovered."""

    roots: Sequence[Path]

    def act(self) -> None:
        """The run that power is lost in."""

    def witness(self) -> Hashable:
        """What is true now and must be minded later."""

    def lose_power(self, witness: Any) -> None:
        """Nothing runs, nothing in memory is left; `witness` was true."""

    def check_at_once(self) -> None:
        """What holds even before anybody recovers."""

    def recover(self) -> None:
        """As the product does it at its next start."""

    def check(self) -> None:
        """The invariants; AssertionError where one is broken."""


def survive(world: World, again: int = AGAIN) -> int:
    """Every state of a run, recovered and looked at, twice; how many these were."""
    first = Recorder(world.roots, "1", world.witness)
    with first.recording():
        world.act()
    world.check()
    for number, loss in enumerate(first.losses.values()):
        _survive_one(world, first, [loss])
        if number % again == 0:
            for other, second in _again(world, first, loss, number):
                _survive_one(world, other, [loss, second])
    return len(first.losses)


def _survive_one(world: World, recorder: Recorder, losses: Sequence[Loss]) -> None:
    loss = losses[-1]
    recorder.make_real(loss.state)
    world.lose_power(loss.witness)
    told = "; then ".join(f"power lost after operation {loss.number}: {loss.after}" for loss in losses)
    try:
        with without_waiting():
            world.check_at_once()
            world.recover()
            world.check()
            before = tree(world.roots)
            world.recover()
        assert tree(world.roots) == before, "a second recovery changed what the first had left"
    except BaseException as why:
        why.add_note(f"{told}\nleft: {_shown(loss)}")
        raise


@contextmanager
def without_waiting() -> Iterator[None]:
    """No power is lost in here: nothing has to wait for a real disk."""
    real = os.fsync, os.fdatasync, os.posix_fadvise
    os.fsync = os.fdatasync = lambda _descriptor: None
    os.posix_fadvise = lambda *_: None  # dropping what is dirty writes it
    try:
        yield
    finally:
        os.fsync, os.fdatasync, os.posix_fadvise = real


def _again(world: World, first: Recorder, loss: Loss, number: int) -> Iterator[tuple[Recorder, Loss]]:
    first.make_real(loss.state)
    world.lose_power(loss.witness)
    second = Recorder(world.roots, "2", world.witness)
    with second.recording():
        world.recover()
    losses = list(second.losses.values())
    for chosen in random.Random(_SEED + number).sample(losses, min(2, len(losses))):
        yield second, chosen


def _shown(loss: Loss) -> str:
    contents = dict(loss.state.contents)
    return "\n  ".join(["", *(f"{path} #{number} {contents[number][:200]!r}" for path, number in loss.state.files)])


def until_a_result(journals: Journals, order: Order, plan: Callable[[], Sequence[Step]]) -> Journal:
    """As the cycle does: take up the journal, or begin, again and again until there is a result."""
    key = order.machine, order.timestamp, order.mode
    journal = journals.find(*key) or journals.create(order)
    for _ in range(30):
        try:
            Runner(journal, lambda: 1.0, Patience(0.0, 3)).run(plan())
        except TryLater:
            journal = journals.find(*key) or journal
        if journal.record.result is not None:
            return journal
    raise AssertionError("it never ends")


@contextmanager
def directories(*bases: str) -> Iterator[list[Path]]:
    """An empty directory each, below these."""
    with tempfile.TemporaryDirectory(prefix="vmkeep-crash-", dir=bases[0]) as name:
        folder = Path(name) / "node"
        folder.mkdir()
        if not bases[1:]:
            yield [folder]
            return
        with directories(*bases[1:]) as others:
            yield [folder, *others]
