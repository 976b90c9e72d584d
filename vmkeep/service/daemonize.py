"""Takes a process into the background where there is no systemd, for `serve --daemon`; a pidfile lets only one work.

Called by the command lines after the settings were read, so that their errors still reach the terminal, and before any
connection or thread is made, because those do not survive the fork.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from daemon import DaemonContext
from daemon.pidfile import TimeoutPIDLockFile
from lockfile import LockError

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.service.settings import LogSettings


@contextmanager
def daemonized(wanted: bool, pidfile: Path | None, logs: LogSettings) -> Iterator[None]:
    """The body runs as a daemon when `wanted`, else right here; a pidfile is written and removed in both cases."""
    lock = nullcontext() if pidfile is None else _lock(pidfile.absolute())
    try:
        if wanted:
            with _log_stream(logs) as stream, DaemonContext(pidfile=lock, stdout=stream, stderr=stream, umask=0o077):
                yield
        else:
            with lock:
                yield
    except LockError as why:
        raise Refused(ReturnValue.CANNOT_CREATE_DIRECTORY, f"the pidfile {pidfile} cannot be written: {why}") from None


def _lock(pidfile: Path) -> TimeoutPIDLockFile:
    lock = TimeoutPIDLockFile(str(pidfile), acquire_timeout=0)
    if lock.is_locked():
        pid = lock.read_pid()
        if pid is not None and _is_running(pid):
            raise Refused(
                ReturnValue.CANNOT_LOCK_MACHINE, f"process {pid} in {pidfile} is at work already; stop it first"
            )
        # Left behind by a process that was killed.
        lock.break_lock()
    return lock


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _log_stream(logs: LogSettings) -> TextIO:
    if logs.file is not None:
        try:
            return Path(logs.file).open("a", buffering=1, encoding="utf-8")
        except OSError as why:
            raise Refused(
                ReturnValue.UNSUPPORTED_PARAMETER, f"logs.file is {logs.file}: cannot append to it: {why.strerror}"
            ) from None
    if sys.stderr.isatty():
        raise Refused(
            ReturnValue.MISSING_PARAMETER,
            "a daemon cannot log to this terminal: set file in [logs] of the settings, or redirect stderr to a file",
        )
    return os.fdopen(os.dup(sys.stderr.fileno()), "a", buffering=1)
