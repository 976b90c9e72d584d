"""Tells whether plans may have changed since they were read: machines, their plans, and those of pools and cluster.

Made by `serve`, whose lookout and places keep what they read while this stays the same. The directory's own change
number (contextCSN) would not do: it moves with each renewal of the lease and each step of a leaf, and stands still on
a server whose syncprov was taken away.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vmkeep.contract.names import ObjectClass, Tree
from vmkeep.directory.port import AnyOf, Equals, Store, Watcher
from vmkeep.directory.survey import BACKUP_SUBTREES

# What `survey` reads. Leaves lie below ou=backup and are named otherwise; disks and the lease are none of it.
# A pool that is renamed takes its plan along, which nobody is told of by itself.
_MACHINES, _POOLS = (Equals("objectClass", name) for name in (ObjectClass.MACHINE, ObjectClass.POOL))
PLANS = AnyOf((_MACHINES, _POOLS, BACKUP_SUBTREES))
_TRUSTED = 900.0  # seconds: a change that the server never told of is not kept for longer


class PlanChanges:
    """A watch of all that plans are made of. A context manager.

    Where the server tells nothing, or the connection is lost, nobody can tell, and plans are read at each look.
    """

    def __init__(self, store: Store, tree: Tree, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._tree = tree
        self._elapsed = elapsed
        self._watcher: Watcher | None = None
        self._noticed = 0

    @property
    def is_watched(self) -> bool:
        """Whether the server tells of every change."""
        return self._watcher is not None and self._watcher.alive()

    def version(self) -> tuple[str, ...]:
        """Another one after every change; empty where nobody can tell. Ask before reading, not after."""
        if not self.is_watched:
            return ()
        return str(self._noticed), str(int(self._elapsed() // _TRUSTED))

    def __enter__(self) -> Self:
        self._watcher = self._store.watch(self._tree.top, PLANS, self._notice, polls=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.close()

    def _notice(self) -> None:
        """Called after each connect too, before the watch is alive: what came before is never taken for unchanged."""
        self._noticed += 1
