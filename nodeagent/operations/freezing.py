"""Freezes a running machine's disks in one instant, with its memory or without; it runs on over overlays.

libvirt does the whole instant in one call, and all disks or none. Where only disks are wanted and the guest has an
agent, the call has it freeze its filesystems around the instant; whatever goes wrong there is thawed, and never called
quiesced. Called by the snapshot's plan.
"""

import time
from pathlib import PurePosixPath

from nodeagent.host.description import has_agent_channel
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.operations import saved_memory
from nodeagent.operations.overlays import overlay_of, write_back
from nodeagent.operations.room import not_on_ram_disk
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import NO_FACTS, Facts, Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power

_THAW_SECONDS = 10
_POLL_SECONDS = 0.2


class Freezing:
    """The instant of one snapshot. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    def freeze(self, _facts: Facts) -> Facts:
        """Freeze every disk; the memory of the same instant goes to retain, if it is wanted."""
        view = self._look()
        if view is None or not view.is_active:
            raise Refused(
                ReturnValue.GUEST_STOPPED, f"{self._order.machine} was switched off before it could be frozen"
            )
        if not self._order.has_memory:
            return self._freeze_disks(can_answer=view.power is Power.RUNNING)
        if view.power is Power.PAUSED:
            # Its images would be given up with its memory, and could not be written to until it runs.
            raise Refused(ReturnValue.GUEST_STOPPED, f"{self._order.machine} was paused before it could be frozen")
        return self._freeze_with_memory()

    def _freeze_with_memory(self) -> Facts:
        """The memory goes to the RAM disk if that goes well, else to retain."""
        *places, last = self._order.state_candidates
        warning: Facts = {}
        for place in places:
            try:
                return self._freeze_to(place)
            except HostFailure as why:
                warning = {"warning": not_on_ram_disk(place.parent, why)}
        return {**self._freeze_to(last), **warning}

    def _freeze_to(self, place: PurePosixPath) -> Facts:
        saved_memory.drop(self._host, self._order.state_candidates)
        for disk in self._order.disks:
            write_back(self._host, self._order, disk)
        self._host.hypervisor.freeze(self._order.machine, self._overlays, str(place))
        return {"state_path": str(place), "consistency": "state", **self._now()}

    def _freeze_disks(self, *, can_answer: bool) -> Facts:
        name, hypervisor = self._order.machine, self._host.hypervisor
        for disk in self._order.disks:
            write_back(self._host, self._order, disk)
        if can_answer:
            with hypervisor.limited_agent(name, self._order.freeze_seconds) as is_connected:
                if is_connected:
                    return self._freeze_quiesced()
        hypervisor.freeze(name, self._overlays, None)
        return {"consistency": "crash", **self._now()}

    def _now(self) -> Facts:
        """libvirt's call ends with the instant; of one that ended without us the instant is not known."""
        return {"instant": self._host.wall_clock()}

    def _freeze_quiesced(self) -> Facts:
        name, hypervisor = self._order.machine, self._host.hypervisor
        try:
            hypervisor.freeze(name, self._overlays, None, quiesce=True)
        except HostFailure as why:
            go_on = "" if self._thaw() else f"; whether they go on is not known, see to it with: virsh domfsthaw {name}"
            if not self._is_frozen(self._look()):
                hypervisor.freeze(name, self._overlays, None)
            told = f"the guest's filesystems could not be frozen: {why}{go_on}"
            return {"consistency": "crash", "warning": told, **self._now()}
        return {"consistency": "quiesced", **self._now()}

    def frozen(self, _facts: Facts) -> Facts | None:
        """Whether the instant that began came about. Whether the guest was quiesced then, nobody knows any more."""
        saved_memory.wait_for_a_save_without_us(self._host, self._order.machine)
        if not self._order.has_memory:
            self._thaw()
        if not self._is_frozen(self._look()):
            return None
        if not self._order.has_memory:
            return {"consistency": "crash"}
        for place in self._order.state_candidates:
            if saved_memory.is_complete(self._host, place):
                self._let_run()
                return {"state_path": str(place), "consistency": "state"}
        return None

    def unfreeze(self, _facts: Facts) -> Facts:
        """Write the overlays back: the machine is as it was."""
        if not self._order.has_memory:
            self._thaw()
        for disk in self._order.disks:
            write_back(self._host, self._order, disk)
        saved_memory.drop(self._host, self._order.state_candidates)
        self._let_run()
        return NO_FACTS

    def _thaw(self) -> bool:
        """Thaw what may be frozen; False where the agent inside does not do it. What is not frozen stays as it is.

        One that died with its filesystems frozen is started anew by the guest, which may take a moment.
        """
        deadline = time.monotonic() + _THAW_SECONDS
        while not self._thaw_once():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)  # a hypervisor's event would tell only of the channel
        return True

    def _thaw_once(self) -> bool:
        view, name = self._look(), self._order.machine
        if view is None or view.power is not Power.RUNNING or not has_agent_channel(view.xml):
            return True  # nobody there to freeze anything
        try:
            with self._host.hypervisor.limited_agent(name, _THAW_SECONDS) as is_connected:
                if is_connected:
                    self._host.hypervisor.thaw(name)
                return is_connected
        except HostFailure:
            return False

    def _let_run(self) -> None:
        """A libvirt that died in the middle may have left the machine paused."""
        view = self._look()
        if view is not None and view.power is Power.PAUSED and self._order.power is Power.RUNNING:
            self._host.hypervisor.resume(self._order.machine)

    def _is_frozen(self, view: View | None) -> bool:
        sources = {disk.target: disk.source for disk in view.description.disks} if view else {}
        return all(sources.get(disk.target) == self._overlay(disk) for disk in self._order.disks)

    @property
    def _overlays(self) -> dict[str, str]:
        return {disk.target: self._overlay(disk) for disk in self._order.disks}

    def _overlay(self, disk: OrderDisk) -> str:
        return str(overlay_of(disk, self._order.timestamp))

    def _look(self) -> View | None:
        return self._host.hypervisor.look(self._order.machine)
