"""The one door to programs: absolute paths, an argument list, a clean environment, a time limit, never a shell.

Called by `images`; nothing else starts anything.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from nodeagent.host.errors import HostFailure, TookTooLong

_PLACES = (Path("/usr/bin"), Path("/usr/sbin"), Path("/usr/local/bin"))
_ENVIRONMENT = {"PATH": "/usr/bin:/usr/sbin", "LC_ALL": "C", "HOME": "/nonexistent"}
_GRACE_SECONDS = 5.0
_MOST_WORDS = 2000


def run(program: str, arguments: Sequence[str], seconds: float, well: Collection[int] = (0,)) -> str:
    """Run a program to its end and return what it printed; HostFailure where it fails or outlives its time.

    `well` are the exit codes that are no failure.
    """
    argv = [str(_find(program)), *arguments]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_ENVIRONMENT,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        raise TookTooLong(f"{' '.join(argv)} did not end within {seconds:g} s and was stopped") from None
    if process.returncode not in well:
        raise HostFailure(f"{' '.join(argv)} failed: {printed.strip()[-_MOST_WORDS:]}")
    return printed


def _find(program: str) -> Path:
    for place in _PLACES:
        if os.access(place / program, os.X_OK):
            return place / program
    raise HostFailure(f"{program} is not installed (looked in {', '.join(map(str, _PLACES))})")


def _end(process: subprocess.Popen[str]) -> None:
    """Stop the program and whatever it started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE_SECONDS)
            return
