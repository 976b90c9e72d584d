"""A run that meets trouble, over the directory's twin in memory: each machine's line says it, no other is held up."""

from collections.abc import Iterator, Sequence

import pytest
import structlog

from controller.check import check
from controller.cycle import Cycle, read_view
from controller.rehearsal import Rehearsal
from controller.report import Outcome, line, summary
from controller.run import Choice, Fate, Started, choose, start
from controller.waiting import Run
from tests.pure.test_decide_run import BOUNDS, NOW, TREE, add_machine, begin
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.leaf import Leaf
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

EARLIER = "20251231T000000Z"


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(TREE.suffix)
    for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines):
        store.add(dn, {"objectClass": ("organizationalUnit",), "ou": (dn.partition(",")[0].partition("=")[2],)})
    return store


@pytest.fixture
def catalogue(store: MemoryStore) -> Catalogue:
    return Catalogue(store, TREE)


def started_over(catalogue: Catalogue, seen: Sequence[Sequence[Leaf]]) -> Started:
    """A run whose looks at what is busy show this, one after the other, and then what there is."""
    looks: Iterator[Sequence[Leaf]] = iter(seen)
    return start(
        catalogue,
        choose(catalogue, None),
        NOW,
        BOUNDS,
        lambda: next(looks, None) or read_view(catalogue).leaves,
        lambda _round: None,
    )


def of_another_controller(name: str, mode: str = "initialize") -> Leaf:
    return Leaf(TREE.leaf(name, EARLIER), name, EARLIER, mode, "20251231T000000Z")


# its start


def test_a_leaf_that_the_directory_does_not_take_refuses_its_machine_alone(catalogue: Catalogue) -> None:
    for name in ("a", "b"):
        add_machine(catalogue, name)
        catalogue.add_backup_subtree(name)
    choices = choose(catalogue, None)
    catalogue.store.delete(TREE.machine_plan("a"))
    started = start(catalogue, choices, NOW, BOUNDS, lambda: read_view(catalogue).leaves, lambda _round: None)
    refused, kept = started.choices
    assert (refused.fate, refused.code) == (Fate.REFUSED, ReturnValue.CANNOT_CONNECT_TO_BACKEND)
    assert refused.sentence.startswith("a: the leaf cannot be added: ")
    assert (kept.fate, started.machines) == (Fate.BACK_UP, {"b"})


def test_of_two_controllers_one_steps_back_and_takes_the_others_leaf_on(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    other = of_another_controller("web")
    started = started_over(catalogue, [[], [other], [other]])
    [choice] = started.choices
    assert (choice.fate, choice.leaf) == (Fate.TAKEN_ON, other.dn)
    assert list(catalogue.leaves()) == [], "our own leaf is taken back"


def test_a_machine_that_other_controllers_keep_busy_is_given_up_with_a_sentence(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    looks = [[], [of_another_controller("web")]] * 50
    empty: list[Leaf] = []
    answers = iter(looks)
    started = start(catalogue, choose(catalogue, None), NOW, BOUNDS, lambda: next(answers, empty), lambda _round: None)
    [choice] = started.choices
    assert choice.code is ReturnValue.CANNOT_LOCK_MACHINE
    assert "let one controller run at a time" in choice.sentence


def test_a_leaf_of_a_restore_waits_for_its_person(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    started = started_over(catalogue, [[of_another_controller("web", "unretainedSmallFiles")]])
    [choice] = started.choices
    assert choice.code is ReturnValue.CANNOT_LOCK_MACHINE
    assert f"web: the leaf {EARLIER} is in mode unretainedSmallFiles; end that first" in choice.sentence


# its waiting


def waiting(catalogue: Catalogue, said: list[str], started: Started | None = None) -> Run:
    cycle = Cycle(catalogue, BOUNDS, structlog.wrap_logger(None, processors=[_drop]), clock=lambda: NOW)
    return Run(cycle, started or begin(catalogue), lambda outcome: said.append(line(outcome)), 10.0, lambda: 0.0)


def _drop(_logger: object, _name: str, _event: object) -> str:
    raise structlog.DropEvent


def test_a_directory_that_is_away_when_time_is_up_is_each_machines_line(
    catalogue: Catalogue, store: MemoryStore
) -> None:
    for name in ("a", "b"):
        add_machine(catalogue, name)
    said: list[str] = []
    run = waiting(catalogue, said)
    store.go_away()
    outcomes = run.close()
    assert [outcome.choice.machine for outcome in outcomes] == ["a", "b"]
    assert said == [
        f"{name}: failed, its leaf cannot be read: the directory in memory was told to be away" for name in ("a", "b")
    ]


def test_a_leaf_that_somebody_deleted_or_that_stands_still_is_said(catalogue: Catalogue) -> None:
    for name in ("a", "b"):
        add_machine(catalogue, name)
    said: list[str] = []
    started = begin(catalogue)
    run = waiting(catalogue, said, started)
    run.turn()
    assert said == []
    catalogue.store.delete(started.choices[0].leaf)
    assert run.turn() is not None
    assert said == [f"a: failed, its leaf {started.choices[0].leaf} is gone: somebody deleted it"]
    [_, still] = run.close()
    assert still.still_in_flight
    assert "still initialize, leaf 20260101T000000Z; `vmkeep-controller serve` or the next run takes it on" in said[1]


def test_a_leaf_whose_claim_the_directory_refuses_is_over_for_this_run(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    said: list[str] = []
    started = begin(catalogue)
    run = waiting(catalogue, said, started)
    over: list[bool] = []
    run.when_over = lambda: over.append(True)
    leaf = next(iter(read_view(catalogue).leaves))
    run._cycle.refused[started.choices[0].key] = (leaf, "the directory refuses: no write access")
    assert run.turn() is None
    assert over == [True]
    assert said == ["web: failed, the directory refuses: no write access"]


# its lines, and what is looked at without a run


def test_a_finished_line_has_what_the_leaf_tells() -> None:
    choice = Choice("web", Fate.TAKEN_ON, leaf="x", sentence="taken on")
    leaf = Leaf(
        "x", "web", EARLIER, "finished", "0", message="the RAM disk was full", execution_times=("downtime: 1.5",)
    )
    outcome = Outcome(choice, leaf)
    assert line(outcome) == "web: finished, downtime 1.500 s (the RAM disk was full) (taken on)"
    assert summary("T", [outcome]) == "T: 1 of 1 machines finished, downtime 1.5 s median, 1.5 s longest"


def test_a_rehearsal_writes_nothing_and_whoever_would_is_a_bug(catalogue: Catalogue, store: MemoryStore) -> None:
    add_machine(catalogue, "web")
    rehearsal = Rehearsal(store)
    rehearsed = Catalogue(rehearsal, TREE)
    started = begin(rehearsed)
    assert started.machines == {"web"}
    assert [entry.dn for entry in rehearsal.added] == [TREE.machine_plan("web"), started.choices[0].leaf]
    assert list(catalogue.leaves()) == []
    for write in (
        lambda: rehearsal.claim(TREE.machine("web"), {}, {}),
        lambda: rehearsal.replace(TREE.machine("web"), {}),
        lambda: rehearsal.delete(TREE.machine("web")),
    ):
        with pytest.raises(AssertionError, match="a rehearsal must not"):
            write()
    assert store.read(TREE.machine("web")) is not None


def test_a_schema_that_may_not_be_read_and_a_tree_that_is_missing_are_findings(catalogue: Catalogue) -> None:
    reachable, schema, machines, plan, lease, promises, *_ = check(catalogue, NOW)
    assert (reachable.is_well, machines.is_well) == (True, True)
    assert not schema.is_well
    assert "cn=subschema cannot be read: let everybody read it" in schema.sentence
    assert not plan.is_well
    assert plan.sentence == f"{TREE.cluster_plan} is missing, or we may not read it: add it"
    assert promises.is_well
    assert (lease.is_well, lease.sentence) == (True, f"{TREE.lease}: not yet there; `serve` adds it")
