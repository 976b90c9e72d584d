"""Tells whether plans may have changed since they were read: machines, their plans, and those of pools and cluster.

Made by `serve`, whose lookout and places keep what they read while this stays the same. The directory's own change
number would not do: it moves with each renewal of the lease and each step of a leaf.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vmkeep.contract.names import ObjectClass
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import AnyOf, Equals, Watcher
from vmkeep.directory.survey import BACKUP_SUBTREES

# What `survey` reads. Leaves lie below ou=backup and are named otherwise; disks and the lease are none of it.
PLANS = AnyOf((Equals("objectClass", ObjectClass.MACHINE), BACKUP_SUBTREES))
_TRUSTED = 900.0  # seconds: a change that the server never told of is not kept for longer


class PlanChanges:
    """A watch of all that plans are made of. A context manager; until it is entered, any change counts.

    The watch looks nowhere by itself: where the server tells nothing, or the connection is lost, the change number of
    the directory decides, as nobody can say what changed.
    """

    def __init__(self, catalogue: Catalogue, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._catalogue = catalogue
        self._elapsed = elapsed
        self._watcher: Watcher | None = None
        self._noticed = 0

    def version(self) -> tuple[str, ...]:
        """Another one after every change; empty where nobody can tell. Ask before reading, not after."""
        if self._watcher is None or not self._watcher.alive():
            return self._catalogue.change_number()
        return "watched", str(self._noticed), str(int(self._elapsed() // _TRUSTED))

    def __enter__(self) -> Self:
        catalogue = self._catalogue
        self._watcher = catalogue.store.watch(catalogue.tree.top, PLANS, self._notice, polls=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.close()

    def _notice(self) -> None:
        """Called after each connect too, before the watch is alive: what came before is never taken for unchanged."""
        self._noticed += 1
