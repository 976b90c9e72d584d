"""The agent's workers over a real journal and a directory in memory: what becomes of a machine that meets a bug."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from lab.waiting import until
from nodeagent.cycle import Agent, ProgressPace
from nodeagent.host.folders import Access, make_folder
from nodeagent.host.locks import machine_lock
from nodeagent.journal import Outcome
from nodeagent.operations.making import MadeFile, Making, write_making
from nodeagent.order import Order
from nodeagent.steps import Facts, Host, Step
from nodeagent.work import PLANS, Counter, Workshop, end_after_a_bug, go_on
from tests.pure.one_node import DN, KEY, Gate, add_leaf, told, turn_until
from tests.pure.test_runner import ORDER, World
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.contract.timestamps import from_timestamp
from vmkeep.service.settings import LimitSettings


@pytest.fixture
def world(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> World:
    """What a snapshot consists of here: three things to make."""
    world = World()

    def plan(_order: Order, _host: Host) -> tuple[Step, ...]:
        return tuple(world.step(name) for name in "abc")

    monkeypatch.setitem(PLANS, Mode.SNAPSHOTTING, plan)
    return world


def test_after_a_bug_everything_is_taken_back_and_the_leaf_is_told_an_undefined_error(
    shop: Workshop, world: World, agent: Agent
) -> None:
    shop.journals.create(ORDER.model_copy(update={"leaf_dn": DN}))
    add_leaf(shop, "snapshotting")
    world.failing["c"] = KeyError("oops")
    turn_until(agent, "the journal to be reported", lambda: not shop.journals.all())
    assert world.told == ["make a", "make b", "remove c", "remove b", "remove a"]
    code, mode, sentence = told(shop)
    assert (code, mode) == (ReturnValue.UNDEFINED_ERROR, "snapshotting")
    assert sentence == "vm: KeyError: 'oops'; see the agent's log"


def test_a_bug_in_taking_back_is_come_back_to_with_bounds_and_then_told(shop: Workshop, world: World) -> None:
    journal = shop.journals.create(ORDER.model_copy(update={"leaf_dn": DN}))
    add_leaf(shop, "snapshotting")
    world.failing["b"] = KeyError("oops")

    def stuck(_name: str) -> Facts:
        raise ZeroDivisionError("in taking back")

    world.remove = stuck  # type: ignore[method-assign]
    came_back = 0
    while journal.record.result is None:
        try:
            go_on(shop, journal, Counter())
        except (KeyError, ZeroDivisionError) as bug:
            try:
                end_after_a_bug(shop, KEY, None, bug)
            except TryLater:
                came_back += 1
        found = shop.journals.find(*KEY)
        assert found is not None
        journal = found
    assert came_back == shop.patience.postponements
    go_on(shop, journal, Counter())
    code, mode, sentence = told(shop)
    assert (code, mode) == (ReturnValue.UNDEFINED_ERROR, "snapshotting")
    assert "oops" in sentence
    assert "in taking back" in sentence
    assert shop.journals.all() == []


def test_a_bug_before_there_is_a_journal_refuses_the_leaf(shop: Workshop, world: World, agent: Agent) -> None:
    del world
    add_leaf(shop, "snapshot")
    turn_until(agent, "the leaf to be refused", lambda: told(shop)[0])
    code, mode, sentence = told(shop)
    assert (code, mode) == (ReturnValue.UNDEFINED_ERROR, "snapshotting")
    assert "AttributeError" in sentence


def test_a_bug_after_the_result_leaves_the_result_as_it_is(shop: Workshop) -> None:
    journal = shop.journals.create(ORDER)
    journal.result(Outcome(0, "done", 1.0))
    with pytest.raises(TryLater, match="could not be reported"):
        end_after_a_bug(shop, KEY, None, KeyError("oops"))
    [found] = shop.journals.all()
    assert (found.record.result, found.record.failure) == (Outcome(0, "done", 1.0), None)


def test_a_bug_is_not_told_while_another_worker_has_the_machine(shop: Workshop) -> None:
    journal = shop.journals.create(ORDER)
    with machine_lock(shop.locks, ORDER.machine), pytest.raises(TryLater, match="locked"):
        end_after_a_bug(shop, KEY, None, KeyError("oops"))
    assert journal.path.read_text().count("\n") == 1


def orders(shop: Workshop, mode: Mode) -> None:
    for machine in ("vm", "vm2", "vm3"):
        shop.journals.create(ORDER.model_copy(update={"machine": machine, "mode": mode, "leaf_dn": DN}))


def test_merges_that_were_left_behind_are_gone_on_with_as_many_at_once_as_the_limit(
    shop: Workshop, gate: Gate, agent: Agent
) -> None:
    orders(shop, Mode.MERGING)
    add_leaf(shop, "finished")
    for _ in range(2):
        agent.cycle()
        until("a merge to be at work", lambda: gate.waiting, 10)
    assert gate.waiting == {"vm"}
    gate.open.set()
    turn_until(agent, "all of them to end", lambda: not shop.journals.all())
    assert gate.waiting == {"vm", "vm2", "vm3"}


def test_snapshots_that_were_left_behind_are_all_gone_on_with_at_once(shop: Workshop, gate: Gate, agent: Agent) -> None:
    """Their machines may stand still."""
    orders(shop, Mode.SNAPSHOTTING)
    agent.cycle()
    until("all of them to be at work", lambda: len(gate.waiting) == 3, 10)


def test_work_that_was_left_behind_shows_its_progress(shop: Workshop, gate: Gate, agent: Agent) -> None:
    update = {"mode": Mode.MERGING, "leaf_dn": DN, "bytes_total": 200}
    shop.journals.create(ORDER.model_copy(update=update))
    leaf = add_leaf(shop, "merging")

    def percent() -> int | None:
        found = shop.catalogue.leaf(leaf.dn)
        return found and found.percent

    turn_until(agent, "the progress to be noted", lambda: percent() == 50)


def test_a_claim_takes_the_progress_of_the_step_before_away(shop: Workshop, gate: Gate) -> None:
    leaf = add_leaf(shop, "snapshot")
    figures = (Attribute.BYTES_DONE, Attribute.BYTES_TOTAL, Attribute.PERCENT)
    changes = {Attribute.STATE: ("0",), "objectClass": (ObjectClass.PROVISIONING, ObjectClass.LEAF)}
    shop.catalogue.store.replace(leaf.dn, changes | dict.fromkeys(figures, ("100",)))
    before = shop.catalogue.leaf(DN)
    assert before is not None and before.percent == 100
    Agent(shop, "n1", LimitSettings(), ProgressPace(1.0), lambda: None).cycle()
    after = shop.catalogue.leaf(DN)
    assert after is not None
    assert (after.bytes_done, after.bytes_total, after.percent) == (None, None, None)
    assert after.raw_mode == "snapshotting"


@pytest.mark.parametrize(("day", "is_taken_up"), [("20260101", True), ("20260102", False)])
def test_a_day_has_come_by_the_nodes_clock(
    shop: Workshop, gate: Gate, tmp_path: Path, day: str, is_taken_up: bool
) -> None:
    clock = from_timestamp("20260101T235959Z").timestamp()
    shop = replace(shop, host=replace(shop.host, wall_clock=lambda: clock))
    leaf = add_leaf(shop, "snapshot")
    shop.catalogue.store.replace(leaf.dn, {Attribute.EXECUTION_DATE: (day,)})
    Agent(shop, "n1", LimitSettings(), ProgressPace(1.0), lambda: None).cycle()
    assert (told(shop)[1] == "snapshotting") is is_taken_up


def test_steps_and_failures_are_counted_by_what_was_asked_for(
    shop: Workshop, world: World, gate: Gate, agent: Agent
) -> None:
    gate.open.set()
    leaf = add_leaf(shop, "merging")
    shop.journals.create(ORDER.model_copy(update={"mode": Mode.MERGING, "leaf_dn": DN, "started_at": time.time()}))
    turn_until(agent, "the merge to be reported", lambda: told(shop)[1] == "merged")
    shop.catalogue.store.replace(leaf.dn, {Attribute.MODE: ("snapshot",), Attribute.STATE: ("0",)})
    turn_until(agent, "the snapshot to fail", lambda: told(shop)[0])
    text = generate_latest(shop.metrics.registry).decode()
    assert 'vmkeep_step_seconds_count{step="merge"} 1.0' in text
    assert 'vmkeep_failures_total{return_value="1",step="snapshot"} 1.0' in text
    assert 'vmkeep_claims_total{outcome="won"} 1.0' in text


# leaves that cannot be read


def ended(shop: Workshop, tmp_path: Path) -> Order:
    """A snapshot that went well and is not reported yet; what it laid into retain."""
    update = {"leaf_dn": DN, "disks": (), "retain_root": str(tmp_path / "retain"), "backup_root": str(tmp_path)}
    order = ORDER.model_copy(update=update)
    journal = shop.journals.create(order)
    journal.result(Outcome(0, "", time.time()))
    with make_folder(order.paths.retain, shop.host.roots, Access()) as retain:
        retain.write("vm.xml", b"<domain/>", Access())
        files = (MadeFile(name="vm.xml", role="xml"),)
        known = {"machine": order.machine, "timestamp": order.timestamp, "uuid": "u", "node": "n1"}
        write_making(retain, Making(**known, power=Power.OFF, consistency="off", files=files, versions={}))
    return order


def test_the_result_of_a_machine_out_of_sight_is_kept_until_its_leaf_can_be_read_again(
    roots: Workshop, tmp_path: Path
) -> None:
    """Moved to another node and back while its backup was at work."""
    order = ended(roots, tmp_path)
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    agent.cycle()
    assert agent.wait(10)
    assert len(roots.journals.all()) == 1
    add_leaf(roots, "snapshotting")
    Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None).cycle()
    until("the result to be told", lambda: told(roots)[1] == "snapshotted", 10)
    assert Path(order.paths.retain).exists()


def test_what_a_backup_left_goes_when_its_leaf_is_gone(roots: Workshop, tmp_path: Path) -> None:
    order = ended(roots, tmp_path)
    add_leaf(roots, "snapshotting")
    roots.catalogue.store.delete(DN)
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    turn_until(agent, "the journal to go", lambda: not roots.journals.all())
    assert not Path(order.paths.retain).exists()


def test_what_cannot_be_cleared_is_left_to_the_next_backup(roots: Workshop, tmp_path: Path) -> None:
    """A link where retain was: nothing behind it is touched, and the result waits for nobody."""
    order = ended(roots, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    Path(order.paths.retain).rename(elsewhere)
    Path(order.paths.retain).symlink_to(elsewhere)
    add_leaf(roots, "snapshotting")
    roots.catalogue.store.delete(DN)
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    turn_until(agent, "the journal to go", lambda: not roots.journals.all())
    assert (elsewhere / "vm.xml").exists()


def test_files_of_a_set_that_can_be_seen_stay_when_its_leaf_is_gone(roots: Workshop, tmp_path: Path) -> None:
    order = ended(roots, tmp_path)
    with make_folder(order.paths.backup, roots.host.roots, Access()) as backup:
        backup.write(f"manifest.json.{order.timestamp}", b"{}", Access())
    add_leaf(roots, "snapshotting")
    roots.catalogue.store.delete(DN)
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    turn_until(agent, "the journal to go", lambda: not roots.journals.all())
    assert (Path(order.paths.retain) / "vm.xml").exists()


# what is left of restores


@pytest.fixture
def left(shop: Workshop, tmp_path: Path) -> Path:
    """A file that an earlier restore brought, and the agent's note of it."""
    order = ORDER.model_copy(update={"leaf_dn": DN, "retain_root": str(tmp_path / "retain")})
    path = Path(order.paths.retain) / "vm.xml"
    path.parent.mkdir(parents=True)
    path.write_text("brought back")
    shop.host.unretained.note(order)
    return path


@pytest.fixture
def roots(shop: Workshop, tmp_path: Path) -> Workshop:
    """The shop of an agent that may write below the test's folder."""
    return replace(shop, host=replace(shop.host, roots=(str(tmp_path),)))


def test_a_restore_that_is_asked_for_again_at_once_finds_retain_cleared(roots: Workshop, left: Path) -> None:
    """Backed out and begun anew between two looks of the agent: what lies there is of the first one."""
    add_leaf(roots, "unretainSmallFiles")
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    turn_until(agent, "the new restore to be taken up", lambda: told(roots)[1] == "unretainingSmallFiles")
    assert not left.exists()
    assert roots.host.unretained.all() == []
    assert agent.wait(10)


def test_a_restore_that_is_out_of_sight_is_left_to_a_person(roots: Workshop, left: Path) -> None:
    """Without leaf and machine it may be another node's by now, with the same files on shared storage."""
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    for _ in range(3):
        agent.cycle()
        assert agent.wait(10)
    assert left.exists()
    assert roots.host.unretained.all() != []
    add_leaf(roots, "finished")
    roots.catalogue.store.delete(DN)
    turn_until(agent, "retain to be cleared: the leaf alone is gone", lambda: not left.exists())
    turn_until(agent, "the note to go", lambda: not roots.host.unretained.all())
    assert agent.wait(10)


def test_a_restore_out_of_sight_whose_files_cannot_be_looked_at_is_come_back_to(roots: Workshop, left: Path) -> None:
    left.unlink()
    left.parent.rmdir()
    left.parent.symlink_to("/nowhere")
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    agent.cycle()
    assert agent.wait(10)
    assert roots.host.unretained.all() != []
    assert agent.cycle() is not None, "it wants to come back"
    assert agent.wait(10)


def test_a_restore_out_of_sight_that_left_nothing_is_forgotten(roots: Workshop, left: Path) -> None:
    left.unlink()
    agent = Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None)
    agent.cycle()
    assert agent.wait(10)
    assert roots.host.unretained.all() == []


def test_a_leaf_that_cannot_be_read_keeps_no_other_work_waiting(
    roots: Workshop, left: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    del left
    add_leaf(roots, "merge")
    roots.journals.create(ORDER.model_copy(update={"mode": Mode.MERGING, "leaf_dn": DN}))
    monkeypatch.setattr(roots.catalogue, "leaf", lambda _dn: (_ for _ in ()).throw(Refused(ReturnValue(17), "no")))
    Agent(roots, "n1", LimitSettings(), ProgressPace(1.0), lambda: None).cycle()
    until("the merge to be at work", lambda: gate.waiting, 10)
