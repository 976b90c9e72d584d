"""A directory that is there need not be on the disk: whoever made it may have been killed before it was."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.host.folders import Access, make_folder, open_folder
from tests.crash_states.losing_power import directories
from tests.crash_states.recording import Recorder


def killed_after_both(root: Path) -> None:
    os.mkdir(root / "a")
    os.mkdir(root / "a/b")


def killed_after_the_first(root: Path) -> None:
    os.mkdir(root / "a")


@pytest.mark.parametrize("killed", [killed_after_both, killed_after_the_first])
def test_what_lies_in_a_directory_that_was_made_by_a_killed_agent_survives(killed: Callable[[Path], None]) -> None:
    with directories("/dev/shm") as [root]:
        recorder = Recorder([root], "1")
        with recorder.recording():
            killed(root)
            with make_folder(root / "a" / "b", [str(root)], Access(mode=0o700)) as folder:
                folder.write("f", b"whole", Access())
        for state in recorder.possible_now():
            recorder.make_real(state)
            assert (root / "a/b/f").exists()
            assert (root / "a/b/f").read_bytes() == b"whole"


def test_what_a_directory_that_is_only_opened_holds_costs_no_sync() -> None:
    with directories("/dev/shm") as [root]:
        (root / "a").mkdir()
        recorder = Recorder([root], "1")
        with recorder.recording(), open_folder(root / "a", [str(root)]) as folder:
            folder.names()
        assert recorder.operations == []


def test_an_owner_or_mode_that_was_set_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_mode & 0o777))
        real(descriptor)

    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", fsync)
    with (
        make_folder(tmp_path / "a", [str(tmp_path)], Access(mode=0o711)),
        open_folder(tmp_path, [str(tmp_path)]) as top,
    ):
        top.set_access("f", Access(mode=0o640))
    for name, mode in (("a", 0o711), ("f", 0o640)):
        assert ((tmp_path / name).stat().st_ino, mode) in synced
