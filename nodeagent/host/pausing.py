"""How long QEMU may stop a machine to write the last of its memory: as short as the machine lets it be.

QEMU's own limit of 300 ms is what it then takes. A machine that changes its memory faster than it can be written would
never come to its end under a short one, so the limit grows while it takes long. Used by `hypervisor`.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import libvirt

_FIRST_MS = 20
_GROWS_EVERY_SECONDS = 15.0
_MOST_MS = 5_000


@contextlib.contextmanager
def short_pause(domain: Any) -> Iterator[None]:
    """Set the limit for what is done inside, raise it step by step while that goes on, and put back what it was."""
    before = domain.migrateGetMaxDowntime(0)
    domain.migrateSetMaxDowntime(_FIRST_MS, 0)
    over = threading.Event()
    growing = threading.Thread(target=_grow, args=(domain, over), name="pause", daemon=True)
    growing.start()
    try:
        yield
    finally:
        over.set()
        growing.join()
        with contextlib.suppress(libvirt.libvirtError):  # the machine may have gone
            domain.migrateSetMaxDowntime(before, 0)


def _grow(domain: Any, over: threading.Event) -> None:
    limit = _FIRST_MS
    while limit < _MOST_MS and not over.wait(_GROWS_EVERY_SECONDS):
        limit = min(limit * 4, _MOST_MS)
        with contextlib.suppress(libvirt.libvirtError):
            domain.migrateSetMaxDowntime(limit, 0)
