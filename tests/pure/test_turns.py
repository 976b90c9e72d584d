"""A saved machine that waits for others of its group to run on: what lets it go, and that nothing keeps it for long."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.waiting import until
from nodeagent.cycle import Agent
from nodeagent.journal import Journals
from nodeagent.operations.instants import instant
from nodeagent.operations.starting import started, turn
from nodeagent.order import Order
from nodeagent.runner import Patience, Runner
from nodeagent.steps import Host, Step
from nodeagent.turns import OUT_OF_TURN, Turns
from nodeagent.work import PLANS, Workshop
from tests.orders import host_at, order_in
from tests.pure.one_node import DN, TREE, Directory, add_leaf, told
from tests.pure.test_runner import ORDER
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import TryLater
from vmkeep.contract.machine import Power
from vmkeep.contract.methods import Method, Route
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import Entry

LIMIT = 20.0
SECOND = ORDER.model_copy(update={"leaf_dn": DN, "start_wait": 600})
BRIEF = SECOND.model_copy(update={"start_wait": 1})


class Slow(Directory):
    """One that answers only when `answers` is set, or says that it cannot be reached."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.is_away = False

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        if self.is_away:
            raise TryLater("the directory is away")
        self.answers.wait(LIMIT)
        return super().read(dn, attributes)


@pytest.fixture
def waiting(shop: Workshop) -> Workshop:
    """The leaf is at work, and asks to wait."""
    add_leaf(shop, "snapshotting")
    say(shop, 600)
    return shop


def say(shop: Workshop, seconds: int) -> None:
    assert shop.catalogue.store.replace(DN, {Attribute.START_WAIT: (str(seconds),)})


def test_it_waits_until_its_leaf_lets_it_go(waiting: Workshop) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(waiting.host.turns.wait, SECOND, threading.Event())
        until("the machine to wait", lambda: "vm" in waiting.host.turns.waiting or None, LIMIT, 0.01)
        assert not answer.done()
        say(waiting, 0)
        assert answer.result(LIMIT) == ""
    assert waiting.host.turns.waiting == set()


@pytest.mark.parametrize("seconds", [None, 0, -5])
def test_where_the_leaf_asks_for_no_wait_nobody_is_asked(seconds: int | None) -> None:
    away = Slow()
    away.is_away = True
    order = SECOND.model_copy(update={"start_wait": seconds})
    assert Turns(Catalogue(away, TREE)).wait(order, threading.Event()) == ""


def test_a_leaf_that_is_gone_keeps_nobody(waiting: Workshop) -> None:
    waiting.catalogue.store.delete(DN)
    assert waiting.host.turns.wait(SECOND, threading.Event()) == ""


def test_when_the_time_of_the_plan_is_over_it_runs_on_and_says_so(waiting: Workshop) -> None:
    begun = time.monotonic()
    said = waiting.host.turns.wait(BRIEF, threading.Event())
    assert time.monotonic() - begun >= 1
    assert said == f"{OUT_OF_TURN}: others of its group were not running within 1 s (vmkeepStartWait)"


def test_a_directory_that_is_away_ends_the_wait() -> None:
    away = Slow()
    away.is_away = True
    said = Turns(Catalogue(away, TREE)).wait(SECOND, threading.Event())
    assert said == f"{OUT_OF_TURN}: the directory did not say whose turn it was (the directory is away)"


def test_a_directory_that_hangs_keeps_nobody_for_longer_than_the_plan_says() -> None:
    slow = Slow()
    said = Turns(Catalogue(slow, TREE)).wait(BRIEF, threading.Event())
    assert "were not running within 1 s" in said
    slow.answers.set()


def test_an_agent_that_ends_lets_go_at_once(waiting: Workshop) -> None:
    stop = threading.Event()
    stop.set()
    assert waiting.host.turns.wait(SECOND, stop) == f"{OUT_OF_TURN}: the agent was ended"


def test_an_agent_that_ends_lets_go_also_where_the_directory_hangs() -> None:
    slow, stop = Slow(), threading.Event()
    stop.set()
    assert Turns(Catalogue(slow, TREE)).wait(SECOND, stop) == f"{OUT_OF_TURN}: the agent was ended"
    slow.answers.set()


def test_that_it_runs_is_told_on_the_leaf(waiting: Workshop) -> None:
    waiting.host.turns.tell(SECOND, 0.5)
    leaf = waiting.catalogue.leaf(DN)
    assert leaf is not None
    assert leaf.started == "19700101T000000.500000Z"


def test_a_leaf_that_somebody_ended_is_not_told(waiting: Workshop) -> None:
    waiting.catalogue.store.replace(DN, {Attribute.RETURN_VALUE: ("108",)})
    waiting.host.turns.tell(SECOND, 0.5)
    leaf = waiting.catalogue.leaf(DN)
    assert leaf is not None
    assert leaf.started == ""


def test_where_it_cannot_be_told_the_snapshot_goes_on() -> None:
    away = Slow()
    away.is_away = True
    Turns(Catalogue(away, TREE)).tell(SECOND, 0.5)


# in the steps of a snapshot


def names(folder: Path, **given: object) -> list[str]:
    order = order_in(folder, Mode.SNAPSHOTTING, **given)
    return [step.name for step in instant(order, host_at(folder), ())]


def test_only_a_saved_machine_that_ran_waits_and_each_of_an_order_tells(tmp_path: Path) -> None:
    assert names(tmp_path) == ["overlays", "save", "swap", "resume"]
    assert names(tmp_path, start_wait=0) == ["overlays", "save", "swap", "turn", "resume", "started"]
    assert names(tmp_path, start_wait=5, power=Power.PAUSED) == ["overlays", "save", "swap", "resume", "started"]
    assert names(tmp_path, start_wait=5, power=Power.OFF) == ["overlays", "swap", "started"]
    clones = Route(freezes=False, clones=True, once=False)
    assert names(tmp_path, start_wait=5, route=clones) == ["save", "clone", "turn", "load", "go", "started"]
    freezes = Route(freezes=True, clones=False, once=False)
    assert names(tmp_path, start_wait=5, route=freezes, method=Method.LIVE) == ["freeze", "started"]


def test_an_agent_that_was_killed_while_a_machine_waited_does_not_wait_again(waiting: Workshop) -> None:
    journal = waiting.journals.create(SECOND)
    journal.began("turn", 0.0, must=False)
    [found] = Journals(journal.path.parent).all()
    outcome = Runner(found, lambda: 0.0, Patience()).run((*turn(SECOND, waiting.host), *started(SECOND, waiting.host)))
    assert (outcome.code, outcome.sentence) == (0, f"{OUT_OF_TURN}: the agent was killed while the machine stood still")


@pytest.mark.parametrize(("began", "waits"), [(-5.0, False), (5.0, True)])
def test_a_machine_that_was_saved_before_its_agent_was_started_does_not_wait(
    waiting: Workshop, began: float, waits: bool
) -> None:
    journal = waiting.journals.create(BRIEF)
    journal.began("save", waiting.host.turns.since + began, must=True)
    [found] = Journals(journal.path.parent).all()
    outcome = Runner(found, lambda: 0.0, Patience()).run(turn(BRIEF, waiting.host))
    assert ("were not running within 1 s" in outcome.sentence) is waits
    assert ("the agent was killed while the machine stood still" in outcome.sentence) is not waits


def test_a_machine_that_waits_takes_up_no_room_of_its_node(
    waiting: Workshop, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may need it that is to run first: one snapshot at a time is what this agent may do."""

    def plan(order: Order, host: Host) -> tuple[Step, ...]:
        return turn(order, host)

    monkeypatch.setitem(PLANS, Mode.SNAPSHOTTING, plan)
    waiting.journals.create(SECOND)
    agent.cycle()
    until("the machine to wait", lambda: "vm" in waiting.host.turns.waiting or None, LIMIT, 0.01)
    add_leaf(waiting, "snapshot", "first")
    agent.cycle()
    until("the other to be taken up", lambda: told(waiting, "first")[1] == "snapshotting" or None, LIMIT, 0.01)
    say(waiting, 0)
    until("the first to be done", lambda: not waiting.journals.all() or (agent.cycle() and None), LIMIT, 0.01)
    assert told(waiting)[0] == ReturnValue.SUCCESS
