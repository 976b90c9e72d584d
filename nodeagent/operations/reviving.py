"""Stops a machine for a restore with its memory kept, and lets the restored one run. Called by the restore's plan.

The restored machine comes up paused, its images are proven in the stopped QEMU, and only then does it run on. From the
note that it was let go its saved memory is of the past: whatever happens later, it is not used again.
"""

from pathlib import PurePosixPath

from nodeagent.host.description import describe
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.operations import saved_memory
from nodeagent.operations.aside import Aside, old_state
from nodeagent.operations.letting_go import let_go, was_let_go
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import LEFT, NO_FACTS, Facts, Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power


class Reviving:
    """The machine of one restore. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    # the machine as it was

    def stop(self, _facts: Facts) -> Facts:
        """Save the machine as it runs now, so that it can be let run on should the restore fail."""
        if not self._is_active(self._look()):
            raise Refused(
                ReturnValue.GUEST_STOPPED,
                f"{self._order.machine} was switched off while it was about to be stopped; ask for the restore again",
            )
        path = old_state(self._order)
        saved_memory.refuse_if_changed(self._host, self._order)
        saved_memory.drop(self._host, [path])
        self._host.hypervisor.save(self._order.machine, str(path))
        return NO_FACTS

    def stopped(self, _facts: Facts) -> Facts | None:
        """Whether a save that began came to its end."""
        saved_memory.wait_for_a_save_without_us(self._host, self._order.machine)
        is_off = not self._is_active(self._look())
        return NO_FACTS if is_off and saved_memory.is_complete(self._host, old_state(self._order)) else None

    def bring_back(self, facts: Facts) -> Facts:
        """Let the old machine be what it was."""
        path = old_state(self._order)
        is_past = saved_memory.is_older_than_disks(self._host, path, self._old_disks(path))
        order = self._order
        left = saved_memory.bring_back(
            self._host, order.machine, order.power, [path], is_past=is_past, peculiar=order.peculiar
        )
        was_stopped_by_us = any(f"{step}_began" in facts for step in ("load", "go", "start"))
        if not left and was_stopped_by_us and not self._is_active(self._look()):
            return {LEFT: f"{saved_memory.NO_MEMORY}: it is off"}
        return left

    def _old_disks(self, state: PurePosixPath) -> tuple[OrderDisk, ...]:
        """The images that its memory belongs to, which need not be where the restored ones go."""
        if not saved_memory.is_complete(self._host, state):
            return ()
        disks = describe(saved_memory.description(self._host, state, self._order.peculiar)).disks
        return tuple(
            OrderDisk(target=disk.target, path=disk.source, kept="")
            for disk in disks
            if disk.is_backed_up and disk.source
        )

    # the machine as it becomes

    def load(self, _facts: Facts) -> Facts:
        """Bring the machine back from the set's memory, paused, and prove its images."""
        self.refuse_if_started()
        self._require_images()
        state = self._order.paths.retain / self._order.set.state_file
        saved_memory.load(self._host, self._order.machine, str(state), self._order.set.xml, self._chains)
        return NO_FACTS

    def loaded(self, _facts: Facts) -> Facts | None:
        """Whether it waits to be let go."""
        view = self._look()
        is_waiting = view is not None and view.power is Power.PAUSED and saved_memory.is_over(view, self._chains)
        return NO_FACTS if is_waiting else None

    def unload(self, _facts: Facts) -> Facts:
        """Stop what came up over the new images."""
        if self._is_active(self._look()) and Aside(self._order, self._host).is_in_place():
            self._host.hypervisor.destroy(self._order.machine)
        return NO_FACTS

    def go(self, _facts: Facts) -> Facts:
        """Let it run on from its instant."""
        return let_go(self._order, self._host)

    def gone(self, _facts: Facts) -> Facts | None:
        """Whether it was let go."""
        return was_let_go(self._order, self._host)

    def start(self, _facts: Facts) -> Facts:
        """Start it without its memory."""
        self.refuse_if_started()
        self._require_images()
        self._host.hypervisor.start(self._order.machine)
        return NO_FACTS

    def started(self, _facts: Facts) -> Facts | None:
        """Whether it runs."""
        return NO_FACTS if self._is_active(self._look()) else None

    @property
    def _chains(self) -> saved_memory.Chains:
        """The set's images, each whole."""
        return {disk.target: (disk.path,) for disk in self._order.disks}

    def refuse_if_started(self) -> None:
        """Nothing of a machine is replaced under a guest that runs: somebody started it in between."""
        if self._is_active(self._look()):
            raise Refused(
                ReturnValue.WRONG_STATE_INFORMATION,
                f"{self._order.machine} was started by somebody else while it was being restored",
            )

    def _require_images(self) -> None:
        """The set's memory over the machine's own images would destroy them; a journal may have lost that they are."""
        if not Aside(self._order, self._host).are_in_place():
            raise HostFailure("the images of the backup are not in their place")

    def _look(self) -> View | None:
        return self._host.hypervisor.look(self._order.machine)

    @staticmethod
    def _is_active(view: View | None) -> bool:
        return view is not None and view.is_active
