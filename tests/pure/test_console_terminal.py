"""How a long command talks where nobody can answer: few lines, and nothing that would command a terminal."""

import pytest

from vmkeep.console.conflicts import Conflict
from vmkeep.console.terminal import Answer, Terminal
from vmkeep.contract.leaf import Leaf


def leaf(mode: str, percent: int | None = None) -> Leaf:
    return Leaf("dn", "web", "20260101T000000Z", mode, "0", percent=percent, bytes_done=1 << 30, bytes_total=3 << 30)


def test_progress_is_a_line_for_each_mode_and_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    for percent in (None, *range(0, 101, 3)):
        terminal.progress(leaf("unretainingLargeFiles", percent))
    terminal.progress(leaf("unretainedLargeFiles", 100))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["unretainingLargeFiles", "unretainingLargeFiles 12 %  1.0 GiB of 3.0 GiB"]
    assert (len(lines), lines[-1]) == (10, "unretainedLargeFiles")


def test_what_the_directory_holds_never_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.say("\x1b[2Jgone [red]no[/red]")
    terminal.table([Conflict(kind="entry", what="\x1b[1m", saved="[bold]x", live="two\nlines")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]no[/red]" in shown
    assert "two?lines" in shown


def test_a_question_without_a_terminal_is_answered_by_nobody() -> None:
    assert Terminal().ask("Restore web?") is Answer.NOBODY
