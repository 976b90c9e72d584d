"""A machine that was moved while it was worked on: whose the work is, and what a node that was lost leaves alone."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cycle import Agent, ProgressPace
from nodeagent.host.copying import Stopped
from nodeagent.journal import Outcome
from nodeagent.moves import Moves
from nodeagent.operations.following import StillOurs, refuse_unseen_set
from nodeagent.order import Order
from nodeagent.steps import Host, Step
from nodeagent.work import PLANS, Counter, Workshop, go_on
from tests.orders import host_at, order_in
from tests.pure.one_node import DN, TREE, Directory, add_leaf, told, turn_until
from tests.pure.test_runner import ORDER, World
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import Entry
from vmkeep.service.settings import LimitSettings

HERE = ORDER.model_copy(update={"leaf_dn": DN, "node": "n1", "boot": "yesterday"})
MACHINE = TREE.machine(ORDER.machine)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """What a snapshot consists of here: three things to make."""
    world = World()

    def plan(_order: Order, _host: Host) -> tuple[Step, ...]:
        return tuple(world.step(name) for name in "abc")

    monkeypatch.setitem(PLANS, Mode.SNAPSHOTTING, plan)
    return world


def value(shop: Workshop, attribute: Attribute) -> tuple[str, ...]:
    entry = shop.catalogue.store.read(DN)
    assert entry is not None
    return entry.all(attribute)


def say(shop: Workshop, dn: str, attribute: Attribute, *values: str) -> None:
    assert shop.catalogue.store.replace(dn, {attribute: values})


# who is at work


@pytest.mark.parametrize("failing", [False, True])
def test_who_ends_a_step_lets_go_of_the_leaf(shop: Workshop, world: World, agent: Agent, failing: bool) -> None:
    add_leaf(shop, "snapshotting")
    say(shop, DN, Attribute.AT_NODE, "n1")
    shop.journals.create(HERE)
    if failing:
        world.failing["b"] = Refused(ReturnValue.CANNOT_SAVE_STATE, "no")
    turn_until(agent, "the step to end", lambda: not shop.journals.all())
    assert told(shop)[1] == ("snapshotting" if failing else "snapshotted")
    assert value(shop, Attribute.AT_NODE) == ()


@pytest.mark.parametrize("mode", ["snapshotting", "merging", "retaining"])
def test_what_another_node_is_at_is_left_to_it_also_where_the_machine_is_here(
    shop: Workshop, world: World, agent: Agent, mode: str
) -> None:
    add_leaf(shop, mode)
    say(shop, DN, Attribute.AT_NODE, "n2")
    before = shop.catalogue.store.read(DN)
    agent.cycle()
    assert agent.wait(10)
    assert (shop.catalogue.store.read(DN), shop.journals.all(), world.told) == (before, [], [])


def test_the_name_of_a_node_is_the_same_in_any_case(shop: Workshop, world: World, agent: Agent) -> None:
    del world
    add_leaf(shop, "snapshotting")
    say(shop, DN, Attribute.AT_NODE, "N1")
    turn_until(agent, "it to be taken up", lambda: told(shop)[0])


def test_what_was_claimed_just_when_the_machine_left_ends_with_a_reason(
    shop: Workshop, world: World, agent: Agent
) -> None:
    """Between the claim and the journal: nothing has begun, and nobody else may begin."""
    add_leaf(shop, "snapshotting")
    say(shop, DN, Attribute.AT_NODE, "n1")
    say(shop, MACHINE, Attribute.NODE, "n2")
    turn_until(agent, "the leaf to be refused", lambda: told(shop)[0])
    code, _, sentence = told(shop)
    assert (code, world.told, value(shop, Attribute.AT_NODE)) == (115, [], ())
    assert "vm is on n2 (sstNode), and n1 was at work on it" in sentence


# what was begun before the host was started anew


def test_what_was_begun_before_a_boot_is_given_up_where_the_machine_is_elsewhere(
    shop: Workshop, world: World, agent: Agent
) -> None:
    add_leaf(shop, "snapshotting")
    shop.journals.create(HERE).began("a", 1.0, must=True)
    say(shop, DN, Attribute.AT_NODE, "n1")
    say(shop, MACHINE, Attribute.NODE, "n2")
    turn_until(agent, "the journal to go", lambda: not shop.journals.all())
    assert world.told == [], "neither gone on with nor taken back"
    assert told(shop)[:2] == (115, "snapshotting")


def test_what_was_begun_before_a_boot_goes_on_where_the_machine_is_here_or_nobody_can_be_asked(
    shop: Workshop, world: World, agent: Agent
) -> None:
    """The directory may be one of the machines that stand still."""
    add_leaf(shop, "snapshotting")
    journal = shop.journals.create(HERE)
    directory = shop.catalogue.store
    assert isinstance(directory, Directory)
    directory.go_away()
    with pytest.raises(TryLater):
        agent.cycle()
    assert agent.wait(10)
    assert world.told == ["make a", "make b", "make c"]
    directory.come_back()
    assert journal.path.exists()


def test_what_was_begun_since_the_boot_goes_on_whatever_the_directory_says(
    shop: Workshop, world: World, agent: Agent
) -> None:
    """A machine that this node holds down comes up here."""
    add_leaf(shop, "snapshotting")
    shop.journals.create(HERE.model_copy(update={"boot": shop.host.moves.boot}))
    say(shop, MACHINE, Attribute.NODE, "n2")
    turn_until(agent, "it to be told", lambda: not shop.journals.all())
    assert world.told == ["make a", "make b", "make c"]
    assert told(shop)[:2] == (0, "snapshotted")
    assert value(shop, Attribute.SET_NODE) == ("n1",)


# whether it is still this node's


@pytest.mark.parametrize(
    ("mode", "return_value", "node", "is_ours"),
    [
        ("snapshotting", "0", ("n1",), True),
        ("snapshotting", "0", (), True),
        ("snapshotting", "0", ("n2",), False),
        ("snapshotting", "108", (), False),
        ("merge", "0", (), False),
    ],
)
def test_work_is_given_up_once_the_leaf_was_ended_or_is_anothers(
    shop: Workshop, mode: str, return_value: str, node: tuple[str, ...], is_ours: bool
) -> None:
    add_leaf(shop, mode)
    say(shop, DN, Attribute.RETURN_VALUE, return_value)
    say(shop, DN, Attribute.AT_NODE, *node)
    if is_ours:
        shop.host.moves.refuse_if_given_up(HERE)
        return
    with pytest.raises(Refused, match="nothing more is done to its set here"):
        shop.host.moves.refuse_if_given_up(HERE)


def test_a_leaf_that_is_shown_no_more_is_anothers_and_one_that_was_deleted_is_nobodys(shop: Workshop) -> None:
    add_leaf(shop, "snapshotting")
    shop.catalogue.store.delete(DN)
    shop.host.moves.refuse_if_given_up(HERE)
    shop.catalogue.store.delete(TREE.machine_plan(ORDER.machine))
    shop.catalogue.store.delete(MACHINE)
    with pytest.raises(Refused, match="another node's by now"):
        shop.host.moves.refuse_if_given_up(HERE)


def test_a_result_that_nobody_asks_for_is_kept_for_a_week(shop: Workshop) -> None:
    """The machine left for good; were it back by then, its leaf would hear of it."""
    journal = shop.journals.create(HERE)
    journal.result(Outcome(0, "", shop.host.wall_clock() - 6 * 86_400))
    with pytest.raises(TryLater, match="kept for a week"):
        go_on(shop, journal, Counter())
    journal.result(Outcome(0, "", shop.host.wall_clock() - 8 * 86_400))
    go_on(shop, journal, Counter())
    assert shop.journals.all() == []


def test_a_directory_that_is_away_gives_nothing_up_and_lets_nobody_write_to_a_machine_that_may_be_elsewhere() -> None:
    directory = Directory()
    directory.go_away()
    moves = Moves(Catalogue(directory, TREE), "n1", "today")
    moves.refuse_if_given_up(HERE)
    moves.refuse_if_moved_over_a_boot(HERE)
    with pytest.raises(TryLater):
        moves.refuse_if_moved(HERE)


def test_nobody_guesses_whose_the_work_is_once_the_plan_may_have_given_it_away() -> None:
    """A directory that is silent for so long cannot say that another node carries the set by now."""
    directory = Directory()
    directory.go_away()
    order = HERE.model_copy(update={"deadline": 60, "started_at": 1000.0})
    Moves(Catalogue(directory, TREE), "n1", "today", lambda: 1059.0).refuse_if_given_up(order)
    late = Moves(Catalogue(directory, TREE), "n1", "today", lambda: 1060.0)
    with pytest.raises(TryLater, match=r"takes longer than 60 s \(vmkeepDeadline\): it may be another node's by now"):
        late.refuse_if_given_up(order)
    late.refuse_if_given_up(HERE)


class Arriving(Directory):
    """One that shows a leaf only to who asks again."""

    def __init__(self, hidden: str) -> None:
        super().__init__()
        self.hidden = [hidden]

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        if dn in self.hidden:
            self.hidden.remove(dn)
            return None
        return super().read(dn, attributes)


@pytest.mark.parametrize(("node", "is_ours"), [((), True), (("n1",), True), (("n2",), False)])
def test_a_leaf_that_comes_into_sight_while_it_is_asked_for_is_judged_by_what_it_says(
    shop: Workshop, node: tuple[str, ...], is_ours: bool
) -> None:
    """Its machine comes to this node between the reading of the one and the other: it was not deleted."""
    directory = Arriving("nothing yet")
    there = replace(shop, catalogue=Catalogue(directory, TREE))
    add_leaf(there, "snapshotting")
    say(there, DN, Attribute.AT_NODE, *node)
    directory.hidden = [DN]
    with nullcontext() if is_ours else pytest.raises(Refused, match="another node's by now"):
        Moves(there.catalogue, "n1", "today").refuse_if_given_up(HERE)
    assert directory.hidden == []


# while a set is carried


def test_who_carries_a_set_asks_now_and_then_whether_it_is_still_theirs(shop: Workshop) -> None:
    add_leaf(shop, "snapshotting")
    say(shop, DN, Attribute.AT_NODE, "n1")
    moved, now = [0], [0.0]
    host = replace(shop.host, progress=lambda amount: moved.append(amount))
    progress = StillOurs(HERE, host, lambda: now[0])
    progress(1)
    say(shop, DN, Attribute.AT_NODE, "n2")
    now[0] = 4.9
    progress(2)
    now[0] = 5.0
    with pytest.raises(Refused, match="nothing more is done to its set here"):
        progress(3)
    assert moved == [0, 1, 2, 3]


class Silence(Directory):
    """One that answers nothing until somebody has waited so often, and tells of each ask."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.on_ask: Callable[[int], None] = lambda _times: None

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        self.asked += 1
        self.on_ask(self.asked)
        return super().read(dn, attributes)


class Waits(threading.Event):
    """The agent's stop, for who waits on it; each wait is over at once, and is told."""

    def __init__(self, on_wait: Callable[[int], bool]) -> None:
        super().__init__()
        self.times = 0
        self.on_wait = on_wait

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout > 0
        self.times += 1
        return self.on_wait(self.times)


def carried_late(shop: Workshop, directory: Directory, stop: threading.Event) -> tuple[Order, Host]:
    """A set whose carrying takes longer than its plan lets a step stand."""
    moves = Moves(Catalogue(directory, TREE), "n1", "today", lambda: 1e6)
    order = HERE.model_copy(update={"deadline": 60, "started_at": 1000.0})
    return order, replace(shop.host, moves=moves, stop=stop)


@pytest.mark.parametrize("then", ["it is still ours", "it is another's", "the agent ends"])
def test_who_carries_a_set_for_long_waits_in_place_for_a_directory_that_is_silent(shop: Workshop, then: str) -> None:
    """What is half copied is hours of work; and a silence of a quarter of an hour is no reason to fail."""
    directory = Silence()
    there = replace(shop, catalogue=Catalogue(directory, TREE))
    add_leaf(there, "snapshotting")
    say(there, DN, Attribute.AT_NODE, "n2" if then == "it is another's" else "n1")
    directory.go_away()

    def wait(times: int) -> bool:
        if times == 100:
            directory.come_back()
        return times == 100 and then == "the agent ends"

    stop = Waits(wait)
    order, host = carried_late(there, directory, stop)
    progress = StillOurs(order, host)
    if then == "it is still ours":
        progress.ask()
    else:
        with pytest.raises(Stopped if then == "the agent ends" else Refused):
            progress.ask()
    assert stop.times == 100


@pytest.mark.parametrize(("answers_in", "asked_again_after"), [(0.1, 5.0), (2.0, 20.0), (900.0, 300.0)])
def test_a_copy_does_not_stand_still_for_a_directory_that_is_slow_to_answer(
    shop: Workshop, answers_in: float, asked_again_after: float
) -> None:
    directory, now = Silence(), [100.0]
    there = replace(shop, catalogue=Catalogue(directory, TREE))
    add_leaf(there, "snapshotting")
    say(there, DN, Attribute.AT_NODE, "n1")
    _, host = carried_late(there, directory, threading.Event())
    progress = StillOurs(HERE, host, lambda: now[0])
    directory.asked, now[0] = 0, 105.0

    def take(_times: int) -> None:
        now[0] += answers_in

    directory.on_ask = take
    progress(1)
    answered = now[0]
    now[0] = answered + asked_again_after - 0.01
    progress(1)
    assert directory.asked == 1
    now[0] = answered + asked_again_after + 0.01
    progress(1)
    assert directory.asked == 2


# what a node sees of a set


def test_a_set_of_another_node_that_is_not_seen_is_refused_with_where_it_lies(tmp_path: Path) -> None:
    order, host = order_in(tmp_path, Mode.RETAINING), host_at(tmp_path)
    leaf = Leaf("dn", "vm", order.timestamp, "retaining", "0", set_node="n0")
    with pytest.raises(Refused) as refused:
        refuse_unseen_set(order, leaf, host)
    assert refused.value.code == 116
    assert (
        f"its set {order.timestamp} lies in {order.paths.retain} on n0, and n1 does not see it"
        in refused.value.sentence
    )
    refuse_unseen_set(order.model_copy(update={"published": True}), leaf, host)
    refuse_unseen_set(order, replace(leaf, set_node="N1"), host)
    notes = Path(order.paths.retain) / ".manifest.making"
    notes.parent.mkdir(parents=True)
    notes.touch()
    refuse_unseen_set(order, leaf, host)


@pytest.fixture
def agent(shop: Workshop) -> Agent:
    return Agent(shop, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)


def test_that_a_machine_has_moved_is_noted_again_where_there_was_no_room_for_it(
    shop: Workshop, world: World, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_leaf(shop, "snapshotting")
    shop.journals.create(HERE)
    say(shop, DN, Attribute.AT_NODE, "n1")
    say(shop, MACHINE, Attribute.NODE, "n2")

    def no_room(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fdatasync", no_room)
        agent.cycle()
        assert agent.wait(10)
        assert shop.journals.all()
    turn_until(agent, "the journal to go", lambda: not shop.journals.all())
    assert (world.told, told(shop)[0]) == ([], 115)
