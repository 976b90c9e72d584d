"""The door to programs: what fails says what it said, and what does not end is ended, with all that it started."""

from pathlib import Path

import pytest

from lab.waiting import until
from nodeagent.host import programs
from nodeagent.host.errors import HostFailure
from nodeagent.host.programs import run


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(HostFailure, match=r"^/usr/bin/ls /nowhere failed: .*No such file or directory$"):
        run("ls", ["/nowhere"], 10)


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(HostFailure, match=r"^no-such-program is not installed \(looked in /usr/bin, "):
        run("no-such-program", [], 10)


@pytest.mark.parametrize("asked", ["", "trap '' TERM; "], ids=["asked kindly", "that does not listen"])
def test_a_program_that_does_not_end_is_ended_with_what_it_started(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_GRACE_SECONDS", 0.3)
    pids = tmp_path / "pids"
    script = f"{asked}sleep 600 & echo $$ $! > {pids}; wait; wait; sleep 600"
    with pytest.raises(HostFailure, match=r" did not end within 1 s and was stopped$"):
        run("bash", ["-c", script], 1)
    started = pids.read_text().split()
    assert len(started) == 2
    until("both to be gone", lambda: not any(is_alive(pid) for pid in started), 10)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
