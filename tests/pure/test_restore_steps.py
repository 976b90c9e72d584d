"""A restore is killed at every touch of the disk and again while it recovers; nothing old is ever lost.

The steps, the runner and the journal are the real ones over real directories. Libvirt is played, and it minds which
content of its images a memory belongs to.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nodeagent.host.errors import HostFailure
from nodeagent.journal import Journal, Journals
from nodeagent.operations.restore import restore
from nodeagent.runner import Patience, Runner
from nodeagent.steps import Facts, Step
from tests.pure.restored_world import LEAF, MACHINE, Killed, Scene, World, counted, made, new, old
from vmkeep.contract.errors import TryLater
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode

OFF, RUNNING, PAUSED = Power.OFF, Power.RUNNING, Power.PAUSED
SCENES = {
    "runs, two disks, firmware": Scene(2, 2, firmware=True, old_firmware=True),
    "runs, firmware is new to it": Scene(1, 1, firmware=True),
    "runs, not kept by libvirt": Scene(1, 1, defined=False),
    "paused, comes back paused": Scene(1, 1, PAUSED, becomes=PAUSED),
    "off, one image of two gone": Scene(2, 1, OFF, firmware=True),
    "off, images and definition gone": Scene(2, 0, OFF, defined=False, firmware=True),
    "runs, without its memory": Scene(1, 1, memory=False, starts=True),
    "runs, was off in the set": Scene(2, 2, memory=False, becomes=OFF),
    "off, single disks": Scene(2, 2, OFF, memory=False, becomes=OFF, alone=True),
}
SEED = 20261121
FULL_JOURNALS = 3
DENSE = "off, images and definition gone"  # every line is durable there, so taking back begins at any of them


def plan(world: World, refused: str | None) -> tuple[Step, ...]:
    def failing(step: Step) -> Step:
        def apply(facts: Facts) -> Facts:
            step.apply(facts)
            raise HostFailure("refused by the test")

        return replace(step, apply=apply) if step.name == refused else step

    return tuple(failing(step) for step in restore(world.order, world.host))


def run(world: World, journals: Journals, refused: str | None = None) -> Journal:
    """As the cycle does: again and again until there is a result."""
    for _ in range(30):
        journal = journals.find(MACHINE, LEAF, Mode.RESTORING)
        assert journal is not None
        try:
            Runner(journal, lambda: 1.0, Patience(0.0, 3)).run(plan(world, refused))
        except TryLater:
            world.faults.full_from = None  # somebody makes room
        if journal.record.result is not None:
            return journal
    raise AssertionError("it never ends")


def run_killed(
    world: World, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...] = (), refused: str | None = None
) -> Journal:
    journals = Journals(world.folder / "journal")
    journals.create(world.order)
    for kill in (*kills, None):
        world.faults.count, world.faults.dead, world.faults.kill_at = 0, False, kill
        try:
            with counted(world.faults, monkeypatch):
                return run(world, journals, refused)
        except Killed:
            world.faults.full_from, world.faults.lost = None, frozenset()
    raise AssertionError("killed more often than told")


def touches(scene: Scene, monkeypatch: pytest.MonkeyPatch, refused: str | None = None) -> int:
    """How many boundaries an undisturbed run has."""
    with made(scene) as world:
        run_killed(world, monkeypatch, (), refused)
        return world.faults.count


def assert_truthful(world: World, journal: Journal, why: object) -> None:
    result = journal.record.result
    assert result is not None
    world.check_nothing_is_lost()
    if result.code == 0:
        assert_restored(world, why)
    else:
        assert "could not be put back" not in result.sentence, (why, result.sentence)
        assert_as_before(world, why)


def assert_restored(world: World, why: object) -> None:
    scene, guest = world.scene, world.hypervisor.guest
    for number, disk in enumerate(world.order.disks):
        assert world.path(disk.target).read_bytes().startswith(new(disk.target)), why
        if number < scene.old:
            assert (world.before / disk.target).read_bytes().startswith(old(disk.target)), why
    if scene.memory or scene.starts:
        assert guest is not None, why
        assert (guest.memory, guest.power) == ("the set" if scene.memory else "fresh", scene.becomes), why
    else:
        assert guest is None, why
    if not scene.alone:
        assert "new" in world.hypervisor.defined, why
    if scene.firmware:
        assert world.nvram.read_bytes() == b"new nvram", why
    if scene.old_firmware:
        assert (world.before / "nvram").read_bytes() == b"old nvram", why
    if scene.power is not OFF:
        assert b'"memory": "old"' in (world.before / "vm.state").read_bytes(), why


def assert_as_before(world: World, why: object) -> None:
    scene, guest = world.scene, world.hypervisor.guest
    for number, disk in enumerate(world.order.disks):
        if number < scene.old:
            assert world.path(disk.target).read_bytes().startswith(old(disk.target)), why
        else:
            assert not world.path(disk.target).exists(), why
        kept = world.retain / disk.kept
        assert not kept.exists() or kept.read_bytes() == new(disk.target), (why, "what is kept is the backup")
    assert world.hypervisor.defined == world.order.set.old_xml, why
    assert (guest is None) is (scene.power is OFF), why
    if guest is not None:
        assert (guest.memory, guest.power) == ("old", scene.power), why
    if scene.old_firmware:
        assert world.nvram.read_bytes() == b"old nvram", why
    assert world.leftovers() == [], why


def seconds(first: int, most: int, everything: bool) -> Iterator[tuple[int, ...]]:
    """One more death, somewhere; or everywhere."""
    if everything:
        yield from ((first, second) for second in range(most))
    else:
        yield (first, random.Random(SEED + first).randrange(most))


@pytest.fixture
def everything(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--all-faults"))


def step_names(scene: Scene) -> list[str]:
    with made(scene) as world:
        return [step.name for step in restore(world.order, world.host)]


@pytest.mark.parametrize("name", SCENES)
def test_killed_at_every_touch_and_again_in_recovery_the_machine_is_restored(
    name: str, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SCENES[name]
    most = touches(scene, monkeypatch)
    assert most > 20
    for kills in itertools.chain.from_iterable(seconds(first, most, everything) for first in range(most)):
        with made(scene) as world:
            journal = run_killed(world, monkeypatch, kills)
            assert journal.record.result is not None
            assert journal.record.result.code == 0, (kills, journal.record.result)
            assert_truthful(world, journal, kills)


@pytest.mark.parametrize("name", SCENES)
def test_refused_after_any_step_and_killed_while_taking_it_back_the_machine_is_as_it_was(
    name: str, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SCENES[name]
    for refused in step_names(scene):
        most = touches(scene, monkeypatch, refused)
        with made(scene) as world:
            result = run_killed(world, monkeypatch, (), refused).record.result
            assert result is not None
            assert result.code != 0
        firsts = range(most) if everything else range(most % 5, most, 5)
        for kills in itertools.chain.from_iterable(seconds(first, most, False) for first in firsts):
            with made(scene) as world:
                journal = run_killed(world, monkeypatch, kills, refused)
                assert_truthful(world, journal, (refused, kills))


@pytest.mark.parametrize("name", SCENES)
def test_a_host_that_refuses_any_one_touch_leaves_the_machine_restored_or_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(touches(SCENES[name], monkeypatch)):
        with made(SCENES[name]) as world:
            world.faults.refuse_at = at
            assert_truthful(world, run_killed(world, monkeypatch), at)


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("name", SCENES)
def test_with_lines_lost_on_a_full_disk_and_then_killed_the_result_tells_the_truth(
    name: str, refused: bool, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal may lose what ended, what was taken back, and that it failed at all."""
    scene = SCENES[name]
    last = step_names(scene)[-1] if refused else None
    most = touches(scene, monkeypatch, last)
    lines = range(2 * len(step_names(scene)) + 2)
    some = random.Random(SEED)
    for full_from in lines:
        all_of_them = everything or (name == DENSE and full_from in (4, 6))
        for kill in range(most) if all_of_them else some.sample(range(most), FULL_JOURNALS):
            with made(scene) as world:
                world.faults.full_from = full_from
                assert_truthful(world, run_killed(world, monkeypatch, (kill,), last), (full_from, kill))


@pytest.mark.parametrize("name", SCENES)
def test_with_every_end_and_every_undone_lost_what_is_done_is_not_done_again(
    name: str, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SCENES[name]
    for refused in (None, step_names(scene)[-1]):
        most = touches(scene, monkeypatch, refused)
        for kill in range(0, most, 1 if everything else 7):
            with made(scene) as world:
                world.faults.lost = frozenset({"ended", "undone"})
                assert_truthful(world, run_killed(world, monkeypatch, (kill,), refused), (refused, kill))


def test_with_every_word_of_taking_back_lost_memory_meets_no_foreign_disk_all_the_same(
    everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the journal nor the mark can be written: the result may be wrong then, the data may not."""
    names = ("runs, two disks, firmware", "off, one image of two gone")
    for name, refused in itertools.product(names, ("load", "go")):
        most = touches(SCENES[name], monkeypatch, refused)
        for kill in range(0, most, 1 if everything else 3):
            with made(SCENES[name]) as world:
                world.faults.has_room_for_marks = False
                world.faults.lost = frozenset({"ended", "undone", "failed"})
                run_killed(world, monkeypatch, (kill,), refused)
                world.check_nothing_is_lost()
