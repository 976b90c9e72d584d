"""How often a serving controller tells of broken promises: at once, then daily, and not of a thousand one by one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from controller.promises import Watch
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore
from vmkeep.service.metrics import Metrics

TREE = Tree("dc=example,dc=org")
START = datetime(2026, 5, 10, 12, tzinfo=UTC)
HOUR = 3600.0
PLAN = {"objectClass": ("organizationalUnit", ObjectClass.PLAN), "ou": ("backup",), Attribute.PROMISE: ("26h",)}


class Told:
    """A cluster that promises a backup within 26 hours, and what a controller says of it as time goes by."""

    def __init__(self) -> None:
        self.store, self.said, self.passed = MemoryStore(TREE.machines), [], 0.0
        log = structlog.wrap_logger(None, processors=[self._hear])
        catalogue, self.metrics = Catalogue(self.store, TREE), Metrics()
        self.watch = Watch(catalogue, log, self.metrics, self._now, lambda: self.passed)

    def _now(self) -> datetime:
        return START + timedelta(seconds=self.passed)

    def _hear(self, _logger: object, _name: str, event: Any) -> Any:
        self.said.append(event["event"].split(":")[0])
        raise structlog.DropEvent

    def add(self, machine: str) -> None:
        self.store.add(TREE.machine(machine), {"objectClass": (ObjectClass.MACHINE,), Attribute.MACHINE: (machine,)})
        self.store.add(TREE.machine_plan(machine), PLAN)

    def back_up(self, machine: str, hours_ago: float) -> None:
        timestamp = to_timestamp(self._now() - timedelta(hours=hours_ago))
        modes = {Attribute.MODE: ("finished",), Attribute.STATE: (timestamp,), Attribute.RETURN_VALUE: ("0",)}
        classes = ("organizationalUnit", ObjectClass.PROVISIONING)
        self.store.add(TREE.leaf(machine, timestamp), {"objectClass": classes, "ou": (timestamp,), **modes})

    def after(self, hours: float) -> list[str]:
        """What is said in a turn so much later."""
        self.passed += hours * HOUR
        self.said.clear()
        self.watch.turn()
        return self.said[:]

    @property
    def broken(self) -> float | None:
        return self.metrics.registry.get_sample_value("vmkeep_broken_promises")


@pytest.fixture
def told() -> Told:
    return Told()


def test_it_is_told_at_once_and_again_every_day(told: Told) -> None:
    told.add("web")
    assert told.after(0) == ["web"]
    assert [hour for hour in range(1, 50) if told.after(1)] == [24, 48]


def test_it_is_looked_once_an_hour_and_says_when_to_come_again(told: Told) -> None:
    told.add("web")
    told.after(0)
    told.add("db")
    assert told.after(0.5) == []
    assert told.watch.turn() == pytest.approx(HOUR / 2)
    assert told.after(0.5) == ["db"]
    assert told.broken == 2


def test_a_promise_that_was_kept_meanwhile_and_is_broken_again_is_told_at_once(told: Told) -> None:
    told.add("web")
    told.after(0)
    told.back_up("web", hours_ago=20)
    assert told.after(1) == []
    assert told.broken == 0
    assert told.after(4) == []
    assert told.after(2) == ["web"]


def test_of_very_many_most_are_counted(told: Told) -> None:
    for number in range(60):
        told.add(f"m{number:02}")
    assert told.after(0) == [
        *(f"m{number:02}" for number in range(50)),
        "and 10 more machines lack the good backup they are promised",
    ]
    assert told.broken == 60
