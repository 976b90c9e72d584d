"""The model of the disk itself: what it calls certain, and what it calls possible."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.crash_states.disk_model import State
from tests.crash_states.recording import Recorder, tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def trees(recorder: Recorder, root: Path, states: Iterable[State] | None = None) -> list[dict[str, bytes | None]]:
    """What may be there if power is lost after everything, or each of some states."""
    found = []
    for state in recorder.possible_now() if states is None else states:
        recorder.make_real(state)
        found.append({path.removeprefix(f"{root}/"): content for path, content in tree([root]).items()})
    return found


def ever(recorder: Recorder, root: Path) -> list[dict[str, bytes | None]]:
    """What may be there whenever power is lost."""
    return trees(recorder, root, [loss.state for loss in recorder.losses.values()])


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_a_new_file_that_nobody_synced_may_be_gone_empty_torn_or_whole(root: Path) -> None:
    recorder = Recorder([root], "a")
    with recorder.recording():
        (root / "new").write_bytes(b"whole")
    assert trees(recorder, root) == [{}, *({"new": content} for content in (b"whole", b"", b"wh", bytes(5)))]


def test_synced_with_its_directory_it_is_there_whatever_happens(root: Path) -> None:
    recorder = Recorder([root], "a")
    with recorder.recording():
        (root / "new").write_bytes(b"whole")
        sync(root / "new")
        sync(root)
    assert trees(recorder, root) == [{"new": b"whole"}]


def test_a_file_renamed_before_it_was_synced_may_be_empty_under_its_name(root: Path) -> None:
    (root / "name").write_bytes(b"old")
    recorder = Recorder([root], "a")
    with recorder.recording():
        (root / "making").write_bytes(b"new")
        os.rename(root / "making", root / "name")
        sync(root)
    found = ever(recorder, root)
    assert {"name": b""} in found
    assert {"name": b"old"} in found


def test_removals_and_additions_of_one_directory_come_in_any_order_until_it_is_synced(root: Path) -> None:
    (root / "a").write_bytes(b"x")
    recorder = Recorder([root], "a")
    with recorder.recording():
        os.link(root / "a", root / "b")
        os.unlink(root / "a")
    assert {} in trees(recorder, root), "the removal came first"


def test_a_rename_to_another_directory_may_show_both_names_and_never_none(root: Path) -> None:
    for name in ("from", "to"):
        (root / name).mkdir()
    (root / "from/f").write_bytes(b"x")
    recorder = Recorder([root], "a")
    with recorder.recording():
        os.rename(root / "from/f", root / "to/f")
    found = [{path for path, content in one.items() if content} for one in trees(recorder, root)]
    assert {"from/f", "to/f"} in found
    assert all(found)


def test_what_lies_in_a_directory_whose_own_name_was_not_synced_may_be_gone_with_it(root: Path) -> None:
    recorder = Recorder([root], "a")
    with recorder.recording():
        os.mkdir(root / "d")
        (root / "d/f").write_bytes(b"x")
        sync(root / "d/f")
        sync(root / "d")
    assert {} in trees(recorder, root)


def test_second_names_stay_names_of_one_file(root: Path) -> None:
    (root / "a").write_bytes(b"x")
    inode = (root / "a").stat().st_ino
    recorder = Recorder([root], "a")
    with recorder.recording():
        os.link(root / "a", root / "b")
        sync(root)
    trees(recorder, root)
    assert (root / "a").stat().st_ino == (root / "b").stat().st_ino == inode
