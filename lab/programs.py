"""The one door to outside programs of the lab: found once, run with an argument list and a time limit."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIRECTORY_PROGRAMS = ("slapd", "slapadd", "ldapadd", "ldapmodify", "ldapsearch", "ldapwhoami", "ldapdelete")
NODE_PROGRAMS = ("libvirtd", "qemu-system-x86_64", "qemu-img", "unshare", "mount", "umount")
GUEST_PROGRAMS = ("gcc", "busybox")


def locate(name: str) -> str:
    """The absolute path of a program; LabError says which package script installs it."""
    found = shutil.which(name, path=_SEARCH_PATH)
    if found is None:
        raise LabError(f"the program {name} is not installed; lab/packages.sh installs what the lab needs")
    return found


def missing(names: Sequence[str]) -> list[str]:
    """Which of these programs are not installed."""
    return [name for name in names if shutil.which(name, path=_SEARCH_PATH) is None]


def environment() -> dict[str, str]:
    """Our own environment with every place searched where Debian keeps daemons."""
    return {**os.environ, "PATH": _SEARCH_PATH, "LC_ALL": "C.UTF-8", "LDAPNOINIT": "1"}


def run(arguments: Sequence[str | Path], text: str | None = None, limit: float = 60.0) -> str:
    """Run a program to its end and return what it printed; LabError carries its own words when it fails."""
    argv = [locate(str(arguments[0])), *map(str, arguments[1:])]
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=limit, check=False, env=environment()
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(argv)} did not end within {limit:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}: {said}")
    return done.stdout
