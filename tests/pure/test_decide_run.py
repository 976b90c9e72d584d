"""The start of a run over the directory's twin in memory: who gets a leaf, and that rivals never double one."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from controller.cycle import read_view
from controller.decide import Bounds
from controller.report import Outcome, exit_code, line, summary
from controller.run import Choice, Fate, Started, choose, start
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.names import Attribute, Tree
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.memory import MemoryStore

BOUNDS = Bounds(timedelta(seconds=600), timedelta(seconds=300), 3, timedelta(seconds=60))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TREE = Tree("dc=example,dc=org")


@pytest.fixture
def catalogue() -> Catalogue:
    store = MemoryStore(TREE.suffix)
    for dn in (f"ou=services,{TREE.suffix}", TREE.top, TREE.machines, TREE.pools):
        store.add(dn, {"objectClass": ("organizationalUnit",), "ou": (dn.partition(",")[0].partition("=")[2],)})
    return Catalogue(store, TREE)


def add_machine(catalogue: Catalogue, name: str, node: str | None = "n1") -> None:
    attributes = {"objectClass": ("sstVirtualizationVirtualMachine",), Attribute.MACHINE: (name,)}
    catalogue.store.add(TREE.machine(name), attributes | ({Attribute.NODE: (node,)} if node else {}))


def begin(catalogue: Catalogue, now: datetime = NOW, names: list[str] | None = None) -> Started:
    return begin_with(catalogue, choose(catalogue, names), now)


def begin_with(catalogue: Catalogue, choices: Sequence[Choice], now: datetime = NOW) -> Started:
    def step_back(_round: int) -> None:
        time.sleep(random.uniform(0, 0.005))

    return start(catalogue, choices, now, BOUNDS, lambda: read_view(catalogue).leaves, step_back)


def fates(started: Started) -> dict[str, Fate]:
    return {choice.machine: choice.fate for choice in started.choices}


def test_machines_without_node_or_with_an_unfit_name_get_no_leaf(catalogue: Catalogue) -> None:
    for name, node in (("good", "n1"), ("homeless", None), ("b..d", "n1")):
        add_machine(catalogue, name, node)
    started = begin(catalogue)
    assert fates(started) == {"good": Fate.BACK_UP, "homeless": Fate.REFUSED, "b..d": Fate.REFUSED}
    assert {choice.machine: int(choice.code) for choice in started.choices} == {"good": 0, "homeless": 43, "b..d": 101}
    assert [leaf.machine for leaf in catalogue.leaves()] == ["good"]


def test_an_exclusion_that_cannot_be_read_refuses_the_machine_instead_of_guessing(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    catalogue.add_backup_subtree("web")
    catalogue.store.replace(TREE.machine_plan("web"), {Attribute.EXCLUDE: ("perhaps",)})
    [choice] = begin(catalogue).choices
    assert (choice.fate, choice.code) == (Fate.REFUSED, ReturnValue.UNSUPPORTED_PARAMETER)


def test_a_name_given_twice_is_one_machine(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    assert fates(begin(catalogue, names=["web", "web"])) == {"web": Fate.BACK_UP}


def test_a_timestamp_that_names_a_leaf_already_is_passed_over_for_the_whole_run(catalogue: Catalogue) -> None:
    for name in ("a", "b"):
        add_machine(catalogue, name)
    catalogue.add_backup_subtree("a")
    catalogue.add_leaf("a", "20260101T000000Z", "0")
    leaf = next(iter(catalogue.leaves("a")))
    catalogue.store.claim(leaf.dn, {}, {Attribute.MODE: ("finished",)})
    started = begin(catalogue)
    assert started.timestamp == "20260101T000001Z"
    assert {leaf.timestamp for leaf in catalogue.leaves("b")} == {"20260101T000001Z"}


def test_a_failed_merge_that_is_tried_again_keeps_the_machine_busy_and_one_given_up_does_not(
    catalogue: Catalogue,
) -> None:
    for name, attempts in (("again", "2"), ("given-up", "3")):
        add_machine(catalogue, name)
        catalogue.add_backup_subtree(name)
        catalogue.add_leaf(name, "20251231T000000Z", "0")
        changes = {Attribute.MODE: ("merging",), Attribute.RETURN_VALUE: ("11",), Attribute.ATTEMPTS: (attempts,)}
        catalogue.store.claim(TREE.leaf(name, "20251231T000000Z"), {}, changes)
    assert fates(begin(catalogue)) == {"again": Fate.TAKEN_ON, "given-up": Fate.BACK_UP}


@pytest.mark.parametrize("offset", [0, 1], ids=["in the same second", "in different seconds"])
def test_rivals_that_start_at_once_never_leave_a_machine_two_leaves(catalogue: Catalogue, offset: int) -> None:
    names = [f"m{number}" for number in range(6)]
    for name in names:
        add_machine(catalogue, name)
    for round_number in range(15):
        moments = [NOW + timedelta(minutes=round_number, seconds=number * offset) for number in range(3)]
        gate = threading.Barrier(len(moments))
        with ThreadPoolExecutor(len(moments)) as rivals:
            results = list(rivals.map(lambda moment, gate=gate: (gate.wait(), begin(catalogue, moment))[1], moments))
        leaves = list(catalogue.leaves())
        assert sorted(leaf.machine for leaf in leaves) == names
        assert not any(Fate.REFUSED in fates(started).values() for started in results)
        for leaf in leaves:
            catalogue.store.delete(leaf.dn)


def test_rivals_that_start_one_slot_at_once_add_one_leaf_and_one_of_them_says_so(catalogue: Catalogue) -> None:
    names = [f"m{number}" for number in range(6)]
    for name in names:
        add_machine(catalogue, name)
    for round_number in range(15):
        slot = f"202601{round_number + 1:02}T030000Z"
        wanted = [Choice(name, Fate.BACK_UP, timestamp=slot, has_backup_subtree=round_number > 0) for name in names]
        gate = threading.Barrier(3)
        with ThreadPoolExecutor(3) as rivals:
            begun = [
                rivals.submit(lambda gate=gate, wanted=wanted: (gate.wait(), begin_with(catalogue, wanted))[1])
                for _ in "abc"
            ]
        results = [one.result() for one in begun]
        assert [(leaf.machine, leaf.timestamp) for leaf in catalogue.leaves()] == [(name, slot) for name in names]
        for name in names:
            told = sorted(fates(started)[name].name for started in results)
            assert told == ["BACK_UP", "TAKEN_ON", "TAKEN_ON"]
        for leaf in list(catalogue.leaves()):
            catalogue.store.delete(leaf.dn)


def test_a_slot_whose_leaf_has_ended_meanwhile_is_taken_on_and_not_waited_for(catalogue: Catalogue) -> None:
    add_machine(catalogue, "web")
    catalogue.add_backup_subtree("web")
    catalogue.add_leaf("web", "20260101T030000Z", "0")
    leaf = next(iter(catalogue.leaves()))
    catalogue.store.claim(leaf.dn, {}, {Attribute.MODE: ("finished",), Attribute.STATE: ("20260101T030500Z",)})
    [choice] = begin_with(catalogue, [Choice("web", Fate.BACK_UP, timestamp="20260101T030000Z")]).choices
    assert (choice.fate, choice.leaf) == (Fate.TAKEN_ON, leaf.dn)


def _outcome(name: str, fate: Fate = Fate.BACK_UP, rv: int = 0, mode: str = "finished") -> Outcome:
    choice = Choice(name, fate, leaf="x", code=ReturnValue.CANNOT_FIND_MACHINE, sentence="why")
    leaf = Leaf("x", name, "20260101T000000Z", mode, "20260101T000042Z", return_value=rv)
    return Outcome(choice, leaf if fate in (Fate.BACK_UP, Fate.TAKEN_ON) else None)


GOOD, BAD = _outcome("good"), _outcome("bad", rv=47, mode="snapshotting")
OUT, UNKNOWN = _outcome("out", Fate.EXCLUDED), _outcome("unknown", Fate.REFUSED)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [([GOOD], 0), ([GOOD, OUT], 0), ([OUT], 0), ([GOOD, BAD], 3), ([GOOD, UNKNOWN], 3), ([BAD], 1), ([BAD, OUT], 1)],
)
def test_the_exit_code_counts_what_was_to_be_backed_up(outcomes: list[Outcome], code: int) -> None:
    assert exit_code(outcomes) == code


def test_no_machine_at_all_is_no_success() -> None:
    assert exit_code([]) == 1


def test_the_lines_name_machine_return_value_meaning_and_sentence() -> None:
    assert line(GOOD) == "good: finished, duration 42 s"
    assert line(BAD) == "bad: failed in snapshotting, return value 47 (not enough disk space)"
    assert line(OUT) == "out: left out, why"
    assert line(UNKNOWN) == "unknown: failed, return value 23 (cannot find machine): why"
    outcomes = [GOOD, BAD, OUT, UNKNOWN]
    assert summary("T", outcomes) == "T: 1 of 3 machines finished, 2 failed, 1 left out"
