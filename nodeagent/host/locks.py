"""One actor per machine on this host: a lock file each, held while somebody works on it.

Freed by the kernel when a process dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmkeep.contract.errors import TryLater


@contextmanager
def machine_lock(directory: Path, machine: str) -> Iterator[None]:
    """Hold a machine's lock; TryLater where another process or worker has it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / f"{machine}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryLater(f"{machine} is locked: another vmkeep process on this node is at work on it") from None
        yield
    finally:
        os.close(descriptor)
