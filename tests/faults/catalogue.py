"""Faults from outside, as values: how each strikes, how it heals, and what may become of the work it hits.

They strike while every machine on the belt is held at work in another mode.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.belt import AT_WORK, Belt
from vmkeep.contract.modes import Mode

EVERY = frozenset(AT_WORK)
NONE: frozenset[Mode] = frozenset()


def _nothing(_belt: Belt) -> None:
    """What heals by itself."""


@dataclass(frozen=True)
class Fault:
    """`part`: what it hits. `may_fail`: modes whose work may end with a return value and a sentence instead of well.

    `guests_wait`: a machine that stands still comes back only once the fault is healed; with all others it does so
    while the fault lasts. `takes_power`: machines that ran are off afterwards.
    """

    name: str
    part: str
    strike: Callable[[Belt], None]
    heal: Callable[[Belt], None] = _nothing
    may_fail: frozenset[Mode] = NONE
    guests_wait: bool = False
    takes_power: bool = False


def _kill_agent(belt: Belt) -> None:
    belt.lab.kill_agent(belt.node)


def _stop_agent(belt: Belt) -> None:
    belt.signal_agent(signal.SIGSTOP)


def _continue_agent(belt: Belt) -> None:
    belt.signal_agent(signal.SIGCONT)


CATALOGUE = (
    Fault("agent killed", "agent", _kill_agent, guests_wait=True),
    Fault("agent stopped", "agent", _stop_agent, _continue_agent, guests_wait=True),
)
