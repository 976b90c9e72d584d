"""The disk after everybody else: the idle I/O class for threads that copy, given back when they are done.

Called by the copy engine. The kernel's calls have no name in libc; where a machine's numbers are not known here, or
the calls are forbidden, the copy goes on without.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator

_NUMBERS = {  # ioprio_set, ioprio_get
    "x86_64": (251, 252),
    "aarch64": (30, 31),
    "riscv64": (30, 31),
    "ppc64le": (273, 274),
    "s390x": (282, 283),
}
_THIS_THREAD = (1, 0)  # IOPRIO_WHO_PROCESS; 0 is the calling thread
_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE
_libc = ctypes.CDLL(None)


@contextlib.contextmanager
def idle_disk_access() -> Iterator[None]:
    """Let everybody else go first at the disk, in this thread."""
    before = _call("get")
    if before is None or _call("set", _IDLE) is None:
        yield
        return
    try:
        yield
    finally:
        _call("set", before)


def disk_class() -> int | None:
    """This thread's I/O class and level, as the kernel packs them; None where it does not tell."""
    return _call("get")


def _call(verb: str, *value: int) -> int | None:
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        return None
    number = numbers[0 if verb == "set" else 1]
    result = int(_libc.syscall(*(ctypes.c_long(item) for item in (number, *_THIS_THREAD, *value))))
    return None if result < 0 else result
