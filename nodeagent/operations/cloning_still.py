"""Clones a machine's images while it is saved, and lets it run on over them: no overlay, nothing to merge.

For filesystems that clone; called by the snapshot's plan. The machine comes back paused, over its own images, and is
looked at before it is let go.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from nodeagent.host.cloning import clone_file
from nodeagent.host.description import with_chain
from nodeagent.host.folders import Access, Folder, open_folder
from nodeagent.host.hypervisor import View
from nodeagent.operations import saved_memory
from nodeagent.operations.letting_go import let_go, was_let_go
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import NO_FACTS, Facts, Host
from vmkeep.contract.machine import Power

_PRIVATE = Access(mode=0o600)


class CloningStill:
    """The instant of one snapshot by clones. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    def clone(self, facts: Facts) -> Facts:
        """Clone every image; nobody writes to it now, nor did since the machine was saved."""
        self._refuse_if_run_by_another(facts)
        for disk in self._order.disks:
            with self._folders(disk) as (images, retain):
                if not retain.exists(disk.kept):  # it bears its name once it is complete
                    clone_file((images, PurePosixPath(disk.path).name), (retain, disk.kept), _PRIVATE)
        return NO_FACTS

    def remove(self, _facts: Facts) -> Facts:
        """Remove the clones."""
        for disk in self._order.disks:
            with self._folders(disk) as (_, retain):
                retain.remove(disk.kept)
        return NO_FACTS

    def load(self, facts: Facts) -> Facts:
        """Bring the machine back over its own images, paused."""
        state = str(facts["state_path"])
        self._refuse_if_run_by_another(facts)
        xml = with_chain(saved_memory.description(self._host, PurePosixPath(state), self._order.peculiar), {})
        saved_memory.load(self._host, self._order.machine, state, xml, self._chains)
        return self._is_back(facts)

    def loaded(self, facts: Facts) -> Facts | None:
        """Whether it waits to be let go."""
        view = self._look()
        is_waiting = view is not None and view.power is Power.PAUSED and saved_memory.is_over(view, self._chains)
        return self._is_back(facts) if is_waiting else None

    def _refuse_if_run_by_another(self, facts: Facts) -> None:
        if self._is_active(self._look()):
            raise self._order.started_by_another
        saved_memory.refuse_if_past(self._host, self._order, facts)

    def _is_back(self, facts: Facts) -> Facts:
        """A machine that was paused is what it was; another has still to be let go."""
        return self._is_up(facts) if self._order.power is Power.PAUSED else NO_FACTS

    def go(self, facts: Facts) -> Facts:
        """Let it run on."""
        return {**let_go(self._order, self._host), **self._is_up(facts)}

    def gone(self, facts: Facts) -> Facts | None:
        """Whether it was let go."""
        found = was_let_go(self._order, self._host)
        return None if found is None else {**found, **self._is_up(facts)}

    def _is_up(self, facts: Facts) -> Facts:
        return {"downtime": max(0.0, self._host.wall_clock() - float(facts["down_at"]))}

    @property
    def _chains(self) -> saved_memory.Chains:
        return {disk.target: (disk.path,) for disk in self._order.disks}

    def _look(self) -> View | None:
        return self._host.hypervisor.look(self._order.machine)

    @staticmethod
    def _is_active(view: View | None) -> bool:
        return view is not None and view.is_active

    @contextmanager
    def _folders(self, disk: OrderDisk) -> Iterator[tuple[Folder, Folder]]:
        with (
            open_folder(PurePosixPath(disk.path).parent, self._host.roots) as images,
            open_folder(self._order.paths.retain, self._host.roots) as retain,
        ):
            yield images, retain
