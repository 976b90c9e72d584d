"""The journal's own file: what it promised is there after any power loss, and half a line spoils nothing."""

import json
from pathlib import Path
from typing import Any

from nodeagent.journal import Journals, Outcome
from tests.crash_states.losing_power import directories, survive
from tests.orders import TIMESTAMP, order_in
from vmkeep.contract.modes import Mode


class Noting:
    """A journal from its order to its removal; `promised` are the lines whose writing has returned."""

    def __init__(self, roots: list[Path]) -> None:
        self.roots = roots
        (roots[0] / "state").mkdir()
        self.directory = roots[0] / "state" / "journal"
        self.promised = 0
        self.is_over = False

    def act(self) -> None:
        journal = Journals(self.directory).create(order_in(self.roots[0], Mode.MERGING))
        doings = (
            lambda: journal.began("a", 1.0, must=True),
            lambda: journal.ended("a", {"size": 12}),
            lambda: journal.began("b", 2.0, must=True),
            lambda: journal.failed(11, "no"),
            lambda: journal.undone("b", {}),
            lambda: journal.result(Outcome(11, "no", 3.0)),
        )
        self.promised = 1
        for doing in doings:
            doing()
            self.promised += 1
        self.is_over = True
        journal.remove()
        self.promised = 0
        self.is_gone = True

    def witness(self) -> tuple[int, bool]:
        return self.promised, self.is_over

    def lose_power(self, witness: Any) -> None:
        self.promised, self.is_over = witness

    def check_at_once(self) -> None:
        pass

    def recover(self) -> None:
        Journals(self.directory).find("vm", TIMESTAMP, Mode.MERGING)

    def check(self) -> None:
        """Every line whole and in its order, none of those missing that the agent went on by."""
        found = self.directory / f"vm.{TIMESTAMP}.merging.journal"
        assert not list(self.directory.glob("*.unreadable"))
        if not found.exists():
            assert self.is_over or not self.promised, f"{self.promised} lines are lost"
            return
        text = found.read_text()
        assert text.endswith("\n")
        events = [json.loads(line)["event"] for line in text.splitlines()]
        assert events == ["order", "began", "ended", "began", "failed", "undone", "result"][: len(events)]
        assert len(events) >= self.promised, (events, self.promised)
        journal = Journals(self.directory).find("vm", TIMESTAMP, Mode.MERGING)
        assert journal is not None
        assert journal.order.machine == "vm"
        assert len(journal.record.began) == events.count("began")


def test_no_line_is_lost_that_the_agent_went_on_by() -> None:
    with directories("/dev/shm") as roots:
        assert survive(Noting(roots)) > 30
