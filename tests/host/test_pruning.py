"""Old iterations go, each by itself: what is foreign among them, or in one of them, keeps none of the others."""

from pathlib import Path

import pytest

from nodeagent.operations.pruning import Pruned, prune

DAYS = [f"2026010{day}T000000Z" for day in range(1, 7)]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Six complete sets."""
    machine = tmp_path / "vm"
    for name in DAYS:
        (machine / name).mkdir(parents=True)
        for file in (f"manifest.json.{name}", f"d.qcow2.{name}"):
            (machine / name / file).write_text("x")
    return machine


def pruned(machine: Path, keep: int = 2) -> Pruned:
    return prune(machine, [str(machine.parent)], keep, {DAYS[-1]})


def names(machine: Path) -> list[str]:
    return sorted(path.name for path in machine.iterdir())


def test_the_oldest_complete_sets_go(machine: Path) -> None:
    (machine / DAYS[4] / f"manifest.json.{DAYS[4]}").unlink()
    assert pruned(machine) == Pruned(tuple(DAYS[:3]), ())
    assert names(machine) == DAYS[3:], "what is not complete neither counts nor goes"


def test_a_foreign_directory_in_one_set_is_named_and_the_others_go(machine: Path) -> None:
    (machine / DAYS[1] / "mine").mkdir()
    found = pruned(machine)
    assert found.removed == (DAYS[0], DAYS[2], DAYS[3])
    [sentence] = found.left
    assert str(machine / DAYS[1]) in sentence
    assert "mine" in sentence
    assert names(machine) == [DAYS[1], *DAYS[4:]]
    assert pruned(machine).left == found.left, "it is told again as long as it lies there"
    (machine / DAYS[1] / "mine").rmdir()
    assert pruned(machine) == Pruned((), ())
    assert names(machine) == DAYS[4:]


def test_a_file_and_a_link_named_like_an_iteration_are_passed_over(machine: Path) -> None:
    (machine / "20250101T000000Z").write_text("somebody's note")
    (machine / "20250102T000000Z").symlink_to(machine / DAYS[-1])
    assert pruned(machine) == Pruned(tuple(DAYS[:4]), ())
    assert names(machine) == ["20250101T000000Z", "20250102T000000Z", *DAYS[4:]]


def test_nothing_goes_while_a_set_lies_in_the_future(machine: Path) -> None:
    assert prune(machine, [str(machine.parent)], 1, {DAYS[0]}) == Pruned((), ())
    assert names(machine) == DAYS
