"""Copies the project, plants a bug in the copy, and runs tests there that import the copy and nothing else."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.planted.bug import Bug

ROOT = Path(__file__).parents[2]
_LEFT_OUT = (".git", ".venv", ".cache", "__pycache__", "*.egg-info", "build", ".hypothesis", ".*_cache")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - (.*))?$", re.MULTILINE)
_GREEN, _RED = 0, 1  # what pytest ends with; anything else is no answer


class NoAnswer(Exception):
    """A bug that could not be planted, or a run that says nothing about the tests."""


@dataclass(frozen=True)
class Answer:
    """Which tests failed and why, and what was printed."""

    failed: dict[str, str]
    printed: str


def check(bug: Bug, root: Path = ROOT) -> None:
    """NoAnswer where what a bug takes away does not stand in the project exactly once."""
    for edit in bug.edits:
        count = (root / edit.file).read_text(encoding="utf-8").count(edit.old)
        if count != 1:
            raise NoAnswer(f"{bug.name}: what it changes stands {count} times in {edit.file}, not once; write it anew")


def plant(bug: Bug, root: Path) -> None:
    """Put a bug into a copy of the project."""
    check(bug, root)
    for edit in bug.edits:
        path = root / edit.file
        path.write_text(path.read_text(encoding="utf-8").replace(edit.old, edit.new), encoding="utf-8")


@contextmanager
def copied() -> Iterator[Path]:
    """The project as it stands, in a directory of its own, gone afterwards."""
    with TemporaryDirectory(prefix="vmkeep-planted-") as name:
        folder = Path(name) / "vmkeep"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
        yield folder


def run(tests: Sequence[str], root: Path, seconds: float) -> Answer:
    """Run tests of a copy; NoAnswer where they do not end in time or cannot be run at all."""
    argv = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
    argv += ["-p", "tests.planted.imported", *tests]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "500"}
    process = subprocess.Popen(
        argv, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        raise NoAnswer(f"{' '.join(tests)} did not end within {seconds:g} s") from None
    if process.returncode not in (_GREEN, _RED):
        raise NoAnswer(f"{' '.join(tests)} ended with {process.returncode}:\n{printed[-3000:]}")
    return Answer(dict(_FAILED.findall(printed)), printed)


def _end(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does, so that fixtures take their servers down; then for good."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
