"""Starts vmkeep's own daemons the way systemd does, and knows when they are ready. Used by the cluster."""

import hashlib
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.processes import Process, start
from lab.waiting import until

_READY_SECONDS = 30


def script(name: str) -> Path:
    """One of vmkeep's commands, from the environment this very Python runs in."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LabError(f"{path} does not exist; install the project into this environment: pip install -e .")
    return path


def serve(
    name: str,
    arguments: Sequence[str | Path],
    log: Path,
    started: Callable[[Process], None],
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start a daemon; returns when it has reported READY. `started` hears of the process first."""
    # An abstract name, so that no file is left; a digest, because names of sockets are short.
    address = f"\0vmkeep-lab-{hashlib.blake2b(str(log).encode(), digest_size=8).hexdigest()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(address)
        ear.setblocking(False)
        told = {"NOTIFY_SOCKET": "@" + address[1:], "PYTHONUNBUFFERED": "1", **(environment or {})}
        process = start(name, arguments, log, told)
        started(process)
        try:
            until(f"{name} to report that it is ready, see {log}", lambda: _ready(process, ear, log), _READY_SECONDS)
        except LabError:
            process.kill()
            raise
    return process


def _ready(process: Process, ear: socket.socket, log: Path) -> bool:
    if not process.alive:
        raise LabError(f"{process.name} ended while starting: {log.read_text(errors='replace').strip()[-800:]}")
    try:
        return b"READY=1" in ear.recv(4096)
    except BlockingIOError:
        return False
