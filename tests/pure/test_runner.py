"""The runner over a real journal and a world of named things: killed at every boundary, twice, it ends the same."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.host.errors import HostFailure
from nodeagent.journal import Journal, Journals
from nodeagent.order import Order, OrderDisk
from nodeagent.runner import Patience, Runner
from nodeagent.steps import Facts, Step
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

ORDER = Order(
    leaf_dn="ou=20260101T000000Z,ou=backup,sstVirtualMachine=vm,ou=virtual machines,o=x",
    machine="vm",
    timestamp="20260101T000000Z",
    mode=Mode.SNAPSHOTTING,
    uuid="u",
    power=Power.RUNNING,
    disks=(OrderDisk(target="vda", path="/i/vm-persistent/p/d.qcow2", kept="d.qcow2"),),
    retain_root="/r",
    backup_root="/b",
    place=("vm-persistent", "p"),
)


class Killed(BaseException):
    """What SIGKILL is to the runner: nothing of it runs any more."""


class World:
    """Things that exist, and a countdown to being killed. Every side effect is two boundaries: before and after."""

    def __init__(self) -> None:
        self.things: set[str] = set()
        self.told: list[str] = []
        self.kill_in: int | None = None
        self.failing: dict[str, Exception] = {}

    def boundary(self) -> None:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise Killed

    def make(self, name: str) -> Facts:
        self.boundary()
        if name in self.failing:
            raise self.failing[name]
        self.things.add(name)
        self.told.append(f"make {name}")
        self.boundary()
        return {f"{name} made": True}

    def remove(self, name: str) -> Facts:
        self.boundary()
        self.things.discard(name)
        self.told.append(f"remove {name}")
        self.boundary()
        return {}

    def step(self, name: str, *, guest_is_down: bool = False) -> Step:
        return Step(
            name,
            f"make {name}",
            ReturnValue.CANNOT_COPY_FILE,
            lambda _facts: self.make(name),
            lambda _facts: {f"{name} made": True} if name in self.things else None,
            lambda _facts: self.remove(name),
            guest_is_down,
        )


def run_to_end(world: World, journals: Journals, steps: list[Step], kills: tuple[int, ...]) -> Journal:
    """Run, be killed at the given boundaries one after the other, start again each time."""
    if journals.find(ORDER.machine, ORDER.timestamp, ORDER.mode) is None:
        journals.create(ORDER)
    for kill in (*kills, None):
        world.kill_in = kill
        journal = journals.find(ORDER.machine, ORDER.timestamp, ORDER.mode)
        assert journal is not None
        try:
            Runner(journal, lambda: 1.0, Patience(0.01, 3)).run(steps)
        except Killed:
            continue
        return journal
    raise AssertionError("killed more often than told")


def boundaries(tmp_path: Path, prepare: Callable[[World], None]) -> int:
    """How many boundaries an undisturbed run has."""
    world = World()
    prepare(world)
    count = itertools.count()
    world.boundary = lambda: next(count) and None  # type: ignore[method-assign, assignment]
    run_to_end(world, Journals(tmp_path / "count"), [world.step(name) for name in "abc"], ())
    return next(count)


@pytest.mark.parametrize("failing", [None, "a", "b", "c"])
def test_killed_twice_at_any_two_boundaries_the_end_is_the_same(tmp_path: Path, failing: str | None) -> None:
    def prepare(world: World) -> None:
        if failing:
            world.failing[failing] = HostFailure("no")

    most = boundaries(tmp_path, prepare)
    assert most >= 1
    for number, kills in enumerate(itertools.product(range(most), repeat=2)):
        world = World()
        prepare(world)
        journal = run_to_end(world, Journals(tmp_path / str(number)), [world.step(name) for name in "abc"], kills)
        assert world.things == (set() if failing else set("abc")), (kills, world.told)
        result = journal.record.result
        assert result is not None
        assert result.code == (ReturnValue.CANNOT_COPY_FILE if failing else ReturnValue.SUCCESS)


def test_what_ended_is_not_done_again(tmp_path: Path) -> None:
    world = World()
    run_to_end(world, Journals(tmp_path), [world.step(name) for name in "abc"], (4,))
    assert world.told == ["make a", "make b", "make c"]


def test_a_torn_last_line_is_forgotten(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.create(ORDER)
    journal.began("a", 1.0, must=True)
    with journal.path.open("a") as file:
        file.write('{"event":"ended","step":"a"')
    found = journals.find(ORDER.machine, ORDER.timestamp, ORDER.mode)
    assert found is not None
    assert "a" in found.record.began
    assert not found.record.ended
    found.ended("a", {"x": 1})
    again = journals.find(ORDER.machine, ORDER.timestamp, ORDER.mode)
    assert again is not None
    assert again.record.facts == {"x": 1}


def test_a_refusal_keeps_its_own_code_and_sentence(tmp_path: Path) -> None:
    world = World()
    world.failing["b"] = Refused(ReturnValue.NOT_ENOUGH_SPACE, "vm: no room")
    journal = run_to_end(world, Journals(tmp_path), [world.step(name) for name in "abc"], ())
    assert journal.record.result is not None
    assert (journal.record.result.code, journal.record.result.sentence) == (47, "vm: no room")
    assert world.told == ["make a", "remove b", "remove a"]


def test_a_world_that_is_not_ready_is_come_back_to_and_given_up_in_the_end(tmp_path: Path) -> None:
    world = World()
    world.failing["b"] = TryLater("away")
    journals = Journals(tmp_path)
    for _ in range(2):
        with pytest.raises(TryLater):
            run_to_end(world, journals, [world.step(name) for name in "abc"], ())
    journal = run_to_end(world, journals, [world.step(name) for name in "abc"], ())
    assert journal.record.result is not None
    assert "away" in journal.record.result.sentence
    assert world.things == set()


def test_a_machine_that_is_down_is_never_given_up(tmp_path: Path) -> None:
    world = World()
    world.failing["b"] = TryLater("libvirt is away")
    steps = [world.step("a"), world.step("b", guest_is_down=True)]
    for _ in range(6):
        with pytest.raises(TryLater):
            run_to_end(world, Journals(tmp_path), steps, ())
    world.failing.clear()
    journal = run_to_end(world, Journals(tmp_path), steps, ())
    assert journal.record.result is not None
    assert journal.record.result.code == 0


def test_a_full_disk_under_the_journal_stops_what_has_not_begun_and_nothing_that_a_machine_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, journals = World(), Journals(tmp_path)
    journal = journals.create(ORDER)
    write = Journal._write
    monkeypatch.setattr(Journal, "_write", _writes_until(write, '"b"'))
    runner = Runner(journal, lambda: 1.0, Patience(0.01, 3))
    with pytest.raises(TryLater, match="full"):
        runner.run([world.step("a"), world.step("b", guest_is_down=True), world.step("c", guest_is_down=True)])
    assert world.things == set("abc"), "every step was done, only the result could not be noted"
    monkeypatch.setattr(Journal, "_write", write)
    again = run_to_end(world, journals, [world.step(name) for name in "abc"], ())
    assert again.record.result is not None
    assert again.record.result.code == 0
    assert world.things == set("abc")


def _writes_until(write: Callable[..., None], word: str) -> Callable[..., None]:
    full = False

    def limited(self: Journal, line: dict[str, object]) -> None:
        nonlocal full
        full = full or word in str(line).replace("'", '"')
        if full:
            raise OSError(28, "the disk is full")
        write(self, line)

    return limited


def test_what_cannot_be_taken_back_is_left_alone_and_told(tmp_path: Path) -> None:
    world = World()
    world.failing["c"] = HostFailure("disk full")

    def stuck(_facts: Facts) -> Facts:
        raise HostFailure("the image is gone")

    steps = [world.step("a"), world.step("b").undone_by(stuck).guarding_machine(), world.step("c")]
    journals = Journals(tmp_path)
    for _ in range(3):
        with pytest.raises(TryLater):
            run_to_end(world, journals, steps, ())
    journal = run_to_end(world, journals, steps, ())
    assert journal.record.result is not None
    assert "disk full" in journal.record.result.sentence
    assert "the image is gone" in journal.record.result.sentence
    assert "a" in world.things, "nothing below the stuck step is touched: it may hold the only copy"


def test_all_that_cannot_be_taken_back_is_named_in_one_sentence(tmp_path: Path) -> None:
    world = World()
    world.failing["c"] = HostFailure("disk full")

    def stuck(_facts: Facts) -> Facts:
        raise HostFailure("read-only")

    steps = [world.step("a").undone_by(stuck), world.step("b").undone_by(stuck), world.step("c")]
    journal = run_to_end(world, Journals(tmp_path), steps, ())
    assert journal.record.result is not None
    left = "and it could not be put back as it was (make b: read-only) (make a: read-only)"
    assert journal.record.result.sentence == f"vm: could not make c: disk full; {left}"


def test_taking_back_has_the_whole_patience_however_often_the_way_forth_was_put_off(tmp_path: Path) -> None:
    world, journals, away = World(), Journals(tmp_path), TryLater("away")
    world.failing["c"] = away
    tries = 0

    def stuck(_facts: Facts) -> Facts:
        nonlocal tries
        tries += 1
        raise HostFailure("the image is gone")

    steps = [world.step("a"), world.step("b").undone_by(stuck).guarding_machine(), world.step("c")]
    for _ in range(2):
        with pytest.raises(TryLater, match="away"):
            run_to_end(world, journals, steps, ())
    world.failing["c"] = HostFailure("disk full")
    for _ in range(3):
        with pytest.raises(TryLater, match="could not be put back"):
            run_to_end(world, journals, steps, ())
    assert run_to_end(world, journals, steps, ()).record.result is not None
    assert tries == 4
