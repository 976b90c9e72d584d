"""An agent that dies of SIGKILL at the n-th boundary of its journal.

Run as `python -m tests.faults.killed_agent N REFUSE SETTINGS`.

Every side effect lies between two lines of the journal, so dying before and after each line is dying around each
side effect. What has no journal, clearing up, dies before the n-th removal of a file where N is written as `removalN`.
REFUSE names a step whose host refuses once the step is done, which sends the operation back ("-": none).
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nodeagent import work
from nodeagent.assembly import assemble
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Folder
from nodeagent.journal import Journal
from nodeagent.order import Order
from nodeagent.steps import Facts, Host, Step
from vmkeep.service.settings import NodeAgentSettings, load

Plan = Callable[[Order, Host], tuple[Step, ...]]
_write = Journal._append


def die_at(boundary: int) -> None:
    """Replace the journal's only write by one that counts."""
    seen = 0

    def counted(self: Journal, line: dict[str, Any], *, must: bool) -> None:
        nonlocal seen
        _die_if(seen == boundary)
        _write(self, line, must=must)
        _die_if(seen + 1 == boundary)
        seen += 2

    Journal._append = counted  # type: ignore[method-assign]


def _die_if(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def die_before_removal(number: int) -> None:
    """Replace the one way to remove a file by one that counts what is there to remove."""
    remove, seen = Folder.remove, 0

    def counted(self: Folder, name: str) -> None:
        nonlocal seen
        if self.exists(name):
            _die_if(seen == number)
            seen += 1
        remove(self, name)

    Folder.remove = counted  # type: ignore[method-assign]


def refuse_after(name: str) -> None:
    """Let a step of this name fail once it has done its work, whatever the operation."""
    for mode, plan in list(work.PLANS.items()):
        work.PLANS[mode] = _failing_at(name, plan)


def _failing_at(name: str, plan: Plan) -> Plan:
    def failing(step: Step) -> Step:
        def apply(facts: Facts) -> Facts:
            step.apply(facts)
            raise HostFailure("refused by the test")

        return replace(step, apply=apply) if step.name == name else step

    return lambda order, host: tuple(failing(step) for step in plan(order, host))


def main() -> None:
    boundary, refused, settings = sys.argv[1:]
    if boundary.startswith("removal"):
        die_before_removal(int(boundary.removeprefix("removal")))
    elif int(boundary) >= 0:
        die_at(int(boundary))
    if refused != "-":
        refuse_after(refused)
    assembly = assemble(load(NodeAgentSettings, Path(settings)), lambda: None)
    assembly.agent.cycle()
    while assembly.agent.is_busy:
        assembly.agent.wait(5)
        assembly.agent.cycle()
    assembly.close()


if __name__ == "__main__":
    main()
