"""An agent that dies of SIGKILL at the n-th boundary of its journal.

Run as `python -m tests.faults.killed_agent N REFUSE SETTINGS`.

Every side effect lies between two lines of the journal, so dying before and after each line is dying around each
side effect. REFUSE names a step whose host refuses once the step is done, which sends the operation back ("-": none).
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from nodeagent import work
from nodeagent.assembly import assemble
from nodeagent.host.errors import HostFailure
from nodeagent.journal import Journal
from nodeagent.steps import Facts, Step
from vmkeep.contract.modes import Mode
from vmkeep.service.settings import NodeAgentSettings, load

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


def refuse_after(name: str) -> None:
    """Let a step of the snapshot fail once it has done its work."""
    plan = work.PLANS[Mode.SNAPSHOTTING]

    def failing(step: Step) -> Step:
        def apply(facts: Facts) -> Facts:
            step.apply(facts)
            raise HostFailure("refused by the test")

        return replace(step, apply=apply) if step.name == name else step

    work.PLANS[Mode.SNAPSHOTTING] = lambda order, host: tuple(failing(step) for step in plan(order, host))


def main() -> None:
    boundary, refused, settings = sys.argv[1:]
    if int(boundary) >= 0:
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
