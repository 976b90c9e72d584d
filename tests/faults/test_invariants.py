"""What looks at the world after a fault knows nothing of the implementation, and sees what is wrong."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import invariants
from tests.faults.invariants import Picture, Story
from tests.faults.writes import Write

IMPLEMENTATION = ("nodeagent", "controller", "vmkeep")
LOOKERS = ("tests.faults.invariants", "tests.faults.writes", "tests.faults.seen_processes")
ROOT = Path(__file__).parents[2]


def imported(module: str) -> set[str]:
    """What a module of the tests imports, and what those of the tests import in turn."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{each.name}" for each in node.names]
            found |= {each if (ROOT / f"{each.replace('.', '/')}.py").exists() else str(node.module) for each in whole}
    return found.union(*(imported(each) for each in found if each.startswith("tests.")))


@pytest.mark.parametrize("module", LOOKERS)
def test_the_eyes_know_nothing_of_the_implementation(module: str) -> None:
    assert [each for each in imported(module) if each.split(".")[0] in IMPLEMENTATION] == []


def check(story: Story, **known: Any) -> Any:
    picture = Picture("vm", 1, "u", "", (), 0, 10, {})
    return invariants._Check(SimpleNamespace(), SimpleNamespace(), picture, story, known.get("history", []))  # type: ignore[arg-type]


def counts(*numbers: int, boot: int | None = None) -> bytes:
    text = f"B {boot}\n" if boot is not None else ""
    return (text + "".join(f"T {number} 1 1 1\n" for number in numbers)).encode()


LOST = Story(lost_power=True)


@pytest.mark.parametrize(
    ("story", "told", "seen"),
    [
        (Story(), counts(11, 12), []),
        (Story(), counts(11, 13), ["it counted 13 after 11"]),
        (Story(), counts(11, 11), ["it counted 11 after 11"]),
        (Story(), counts(5, 6), ["it counted 5 after 10"]),
        (LOST, counts(11) + counts(12, boot=11), []),
        (LOST, counts(11) + counts(13, boot=12), []),  # on its disk, and not printed
        (LOST, counts(11) + counts(10, 11, boot=9), ["it counted 10 after 11 as it booted"]),
        (Story(), counts(11) + counts(13, boot=12), ["it counted 13 after 11 as it booted"]),
    ],
)
def test_a_number_that_is_missing_or_comes_again_is_seen(story: Story, told: bytes, seen: list[str]) -> None:
    assert list(check(story)._lost_counts(told)) == seen


def test_a_restore_goes_back_to_its_set_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants._Check, "_instant", lambda _self: 5)
    restored = Story(restored="20260101T000000Z")
    assert list(check(restored)._lost_counts(counts(11, 6, 7))) == []
    assert list(check(restored)._lost_counts(counts(11, 6, 12, 13))) == [], "it was put back as it was"
    assert list(check(restored)._lost_counts(counts(11, 8))) == ["it counted 8 after 11"]


def test_a_set_that_is_not_what_its_manifest_says_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "20260101T000000Z"
    folder.mkdir()
    (folder / "disk").write_bytes(b"one")
    assert "no manifest" in invariants._wrong_in(folder, invariants.files_of(folder))
    files = [
        {"name": name, "size": size, "digest": digest} for name, (size, digest) in invariants.files_of(folder).items()
    ]
    (folder / f"manifest.json.{folder.name}").write_text(json.dumps({"files": files}))
    assert invariants._wrong_in(folder, invariants.files_of(folder)) == ""
    (folder / "disk").write_bytes(b"two")
    assert "is not what its manifest says" in invariants._wrong_in(folder, invariants.files_of(folder))


def test_an_attempt_that_ends_twice_and_a_leaf_claimed_twice_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(mode: str, state: str, code: str = "0") -> Write:
        return Write("1", "ou=l,vm", "agent", mode, state, code, is_note=False)

    claim, end = write("merging", "0"), write("merged", "now")
    seen = {"twice ended": [claim, end, end], "twice claimed": [claim, claim, end], "well": [claim, end]}
    for name, writes in seen.items():
        monkeypatch.setattr(invariants._Check, "_writes_by_leaf", lambda _self, told=writes: [("ou=l", told)])
        monkeypatch.setattr(invariants._Check, "_leaf_entries", [])
        found = [*check(Story())._leaves(), *check(Story())._actors()]
        assert len(found) == (name != "well"), (name, found)
