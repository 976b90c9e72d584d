"""Workers whose outside world refuses something of one machine: it is told or tried again, and nobody else waits."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest

from lab.waiting import until
from nodeagent import cycle
from nodeagent.cycle import Agent, ProgressPace
from nodeagent.journal import Journal, Outcome
from nodeagent.operations.aside import before_directory
from nodeagent.order import Order, Restoring
from nodeagent.work import Workshop
from tests.pure.one_node import DN, Directory, Gate, add_leaf, told, turn_until
from tests.pure.test_runner import ORDER
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.modes import Mode
from vmkeep.service.settings import LimitSettings

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
DONE = Outcome(int(ReturnValue.SUCCESS), "", 1.0)
RESTORE = ORDER.model_copy(update={"leaf_dn": DN, "mode": Mode.RESTORING, "restoring": Restoring(set_directory="/b")})


@pytest.fixture
def directory(shop: Workshop) -> Directory:
    store = shop.catalogue.store
    assert isinstance(store, Directory)
    return store


@pytest.fixture(autouse=True)
def again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "_AGAIN_SECONDS", 0.05)


def ended(shop: Workshop, order: Order) -> Journal:
    """The journal of an agent that was killed before it reported."""
    journal = shop.journals.create(order)
    journal.result(DONE)
    return journal


@pytest.fixture
def started(gate: Gate) -> Iterator[Callable[[Workshop], Agent]]:
    """Agents of the shops given, which have no work left when the test is over."""
    agents: list[Agent] = []

    def start(shop: Workshop) -> Agent:
        agents.append(Agent(shop, "n1", LimitSettings(merges=3), ProgressPace(0.0), lambda: None))
        return agents[-1]

    yield start
    gate.open.set()
    assert all(agent.wait(10) for agent in agents)


def test_a_claim_that_is_refused_keeps_no_other_leaf_waiting(
    shop: Workshop, directory: Directory, gate: Gate, started: Callable[[Workshop], Agent]
) -> None:
    directory.closed.add(add_leaf(shop, "merge").dn)
    add_leaf(shop, "merging", "vm2")
    shop.journals.create(ORDER.model_copy(update={"machine": "vm2", "mode": Mode.MERGING}))
    started(shop).cycle()
    until("the other merge to be at work", lambda: gate.waiting == {"vm2"}, 10)
    assert told(shop)[1] == "merge"


def test_a_result_that_is_refused_is_kept_and_told_once_it_may_be(
    shop: Workshop, directory: Directory, started: Callable[[Workshop], Agent]
) -> None:
    said: list[str] = []
    agent = started(replace(shop, log=log_into(said)))
    add_leaf(shop, "merging")
    ended(shop, ORDER.model_copy(update={"leaf_dn": DN, "mode": Mode.MERGING}))
    directory.closed.add(DN)
    for _ in range(3):
        agent.cycle()
        assert agent.wait(10)
    assert told(shop)[1] == "merging"
    assert set(said) == {f"{DN}: no write access; trying again"}
    directory.closed.clear()
    turn_until(agent, "the result to be told", lambda: not shop.journals.all())
    assert told(shop)[1] == "merged"


def log_into(said: list[str]) -> Any:
    def keep(_logger: object, _name: str, event: Any) -> Any:
        said.append(event["event"])
        raise structlog.DropEvent

    return structlog.wrap_logger(None, processors=[keep])


def test_that_a_machine_is_restored_is_noted_before_it_is_told_and_keeps_no_other_machine_waiting(
    shop: Workshop, tmp_path: Path, gate: Gate, started: Callable[[Workshop], Agent]
) -> None:
    shop = replace(shop, host=replace(shop.host, roots=(str(tmp_path),)))
    order = RESTORE.model_copy(update={"retain_root": str(tmp_path / "retain")})
    kept = Path(before_directory(order))
    kept.parent.mkdir(parents=True)
    kept.symlink_to(tmp_path)
    add_leaf(shop, "restoring")
    ended(shop, order)
    shop.journals.create(ORDER.model_copy(update={"machine": "vm2", "mode": Mode.MERGING}))
    agent = started(shop)
    agent.cycle()
    until("the other machine to be at work", lambda: gate.waiting == {"vm2"}, 10)
    add_leaf(shop, "merge", "vm3")
    turn_until(agent, "a new leaf to be taken up", lambda: told(shop, "vm3")[1] == "merging")
    assert told(shop)[1] == "restoring"
    kept.unlink()
    kept.mkdir()
    turn_until(agent, "the restore to be told", lambda: told(shop)[1] == "restored")
    assert (kept / "restored").exists()


def test_a_restored_machine_whose_kept_files_somebody_removed_is_told_all_the_same(
    shop: Workshop, tmp_path: Path, started: Callable[[Workshop], Agent]
) -> None:
    shop = replace(shop, host=replace(shop.host, roots=(str(tmp_path),)))
    add_leaf(shop, "restoring")
    ended(shop, RESTORE.model_copy(update={"retain_root": str(tmp_path)}))
    turn_until(started(shop), "the restore to be told", lambda: told(shop)[1] == "restored")


def test_a_bug_that_cannot_be_told_now_is_told_later(
    shop: Workshop, directory: Directory, started: Callable[[Workshop], Agent]
) -> None:
    def look(_name: str) -> None:
        directory.go_away()
        raise ZeroDivisionError("oops")

    broken: Any = SimpleNamespace(look=look)
    host = replace(shop.host, hypervisor=broken)
    shop = replace(shop, host=host, surveyor=replace(shop.surveyor, host=host))
    add_leaf(shop, "snapshot")
    agent = started(shop)
    agent.cycle()
    assert agent.wait(10)
    directory.come_back()
    assert told(shop)[:2] == (0, "snapshotting")
    broken.look = lambda _name: 1 / 0
    turn_until(agent, "the leaf to be told", lambda: told(shop)[0] == ReturnValue.UNDEFINED_ERROR)


def test_progress_that_is_refused_ends_no_work(shop: Workshop, directory: Directory, gate: Gate, agent: Agent) -> None:
    add_leaf(shop, "merging")
    update = {"mode": Mode.MERGING, "leaf_dn": DN, "bytes_total": 200, "started_at": time.time()}
    shop.journals.create(ORDER.model_copy(update=update))
    directory.closed.add(DN)
    agent.cycle()
    until("the merge to be at work", lambda: gate.waiting, 10)
    agent.cycle()
    leaf = shop.catalogue.leaf(DN)
    assert leaf is not None and leaf.percent is None
    directory.closed.clear()
    gate.open.set()
    turn_until(agent, "the merge to be told", lambda: told(shop)[1] == "merged")


def test_silence_that_cannot_be_told_ends_no_work(shop: Workshop, directory: Directory, gate: Gate) -> None:
    add_leaf(shop, "merging")
    shop.journals.create(ORDER.model_copy(update={"mode": Mode.MERGING, "leaf_dn": DN, "started_at": time.time()}))
    agent = Agent(shop, "n1", LimitSettings(), ProgressPace(0.0, 0.0), lambda: None)
    directory.closed.add(DN)
    agent.cycle()
    until("the merge to be at work", lambda: gate.waiting, 10)
    for _ in range(3):
        agent.cycle()
    assert "vmkeep_silent_work 1.0" in generate_latest(shop.metrics.registry).decode()
    directory.closed.clear()
    assert told(shop)[2] == ""
    gate.open.set()
    turn_until(agent, "the merge to be told", lambda: told(shop)[1] == "merged")
