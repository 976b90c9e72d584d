"""Saves a running or paused machine's memory and lets it run on from it. Called by the snapshot's plan.

A machine is let go only after its image chain has been proven in the stopped QEMU: it is restored paused, looked at,
then resumed. What a killed agent left in between is told apart by the state file's first bytes, libvirt, and the
overlays.
"""

from pathlib import PurePosixPath

from nodeagent.host.description import with_chain
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import View
from nodeagent.operations import saved_memory
from nodeagent.operations.room import not_on_ram_disk
from nodeagent.order import Order, OrderDisk
from nodeagent.steps import Facts, Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power


class Resuming:
    """The instant of one snapshot. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    # saving

    def save(self, _facts: Facts) -> Facts:
        """Save the memory, on the RAM disk if that goes well, else in retain."""
        self._refuse_unless_active()
        saved_memory.refuse_if_changed(self._host, self._order)
        saved_memory.drop(self._host, self._order.state_candidates)
        *places, last = self._order.state_candidates
        warning: Facts = {}
        for place in places:
            try:
                return self._save_to(place)
            except HostFailure as why:
                warning = {"warning": not_on_ram_disk(place.parent, why)}
        return {**self._save_to(last), **warning}

    def _save_to(self, place: PurePosixPath) -> Facts:
        down_at = self._host.wall_clock()
        try:
            self._host.hypervisor.save(self._order.machine, str(place))
        except HostFailure as why:
            self._refuse_unless_it_runs(why)
            raise
        return {"state_path": str(place), "down_at": down_at}

    def _refuse_unless_active(self) -> None:
        """A state file of a machine that is off may be all there is of its memory; it is not written over."""
        view = self._look()
        if view is None or not view.is_active:
            raise Refused(ReturnValue.GUEST_STOPPED, f"{self._order.machine} was switched off before it could be saved")

    def _refuse_unless_it_runs(self, why: HostFailure) -> None:
        """A failed save leaves the machine running; anything else is no reason to try another place."""
        view = self._host.hypervisor.look(self._order.machine)
        if view is None or not view.is_active:
            raise Refused(ReturnValue.GUEST_STOPPED, f"{self._order.machine} stopped while it was being saved: {why}")

    def saved(self, facts: Facts) -> Facts | None:
        """Whether a save that began came to its end."""
        saved_memory.wait_for_a_save_without_us(self._host, self._order.machine)
        view = self._look()
        if view is not None and view.is_active:
            return None
        for candidate in self._order.state_candidates:
            if saved_memory.is_complete(self._host, candidate):
                return {"state_path": str(candidate), "down_at": facts["save_began"]}
        return None

    def bring_back(self, facts: Facts) -> Facts:
        """Take a save back: the machine runs on from its memory, on its old images; the state file goes.

        Never from its memory once it has run on, or was run by somebody else: its disks are newer then.
        """
        order, candidates = self._order, self._order.state_candidates
        is_past = any(fact in facts for fact in ("ran_on", "downtime", "go_began"))
        is_past |= any(saved_memory.is_older_than_disks(self._host, state, order.disks) for state in candidates)
        return saved_memory.bring_back(
            self._host, order.machine, order.power, candidates, is_past=is_past, peculiar=order.peculiar
        )

    # resuming

    def resume(self, facts: Facts) -> Facts:
        """Let the machine run on over its overlays, once their chain is proven."""
        view = self._look()
        if view is None or not view.is_active:
            if self._ran_on():
                return self._after_it_ran_on(view)
            self._load(str(facts["state_path"]))
        elif not saved_memory.is_over(view, self._chains):
            raise self._order.started_by_another
        if self._order.power is Power.RUNNING:
            self._host.hypervisor.resume(self._order.machine)
        return self._is_up(facts)

    def resumed(self, facts: Facts) -> Facts | None:
        """Whether the machine is in the state it was in."""
        view = self._look()
        if view is None or view.power is not self._order.power or not saved_memory.is_over(view, self._chains):
            return None
        return self._is_up(facts)

    def _is_up(self, facts: Facts) -> Facts:
        return {"downtime": max(0.0, self._host.wall_clock() - float(facts["down_at"]))}

    def _load(self, state: str) -> None:
        backing = {target: kept for target, (_, kept) in self._chains.items()}
        inside = saved_memory.description(self._host, PurePosixPath(state), self._order.peculiar)
        xml = with_chain(inside, backing)
        saved_memory.load(self._host, self._order.machine, state, xml, self._chains)

    @property
    def _chains(self) -> dict[str, tuple[str, str]]:
        """Every overlay over its retained image."""
        retain = self._order.paths.retain
        return {disk.target: (disk.path, str(retain / disk.kept)) for disk in self._order.disks}

    def _ran_on(self) -> bool:
        """Whether the guest wrote to its overlays, so that its saved memory is of the past."""
        return not all(self._is_empty(disk) for disk in self._order.disks)

    def _after_it_ran_on(self, view: View | None) -> Facts:
        if view is not None and view.stopped_by_itself:
            return {"stopped": "the machine was switched off right after it ran on"}
        self._host.hypervisor.start(self._order.machine)
        return {"stopped": "the machine had to be started anew: it stopped right after it ran on"}

    def _is_empty(self, disk: OrderDisk) -> bool:
        return self._host.header(PurePosixPath(disk.path)).is_empty

    def _look(self) -> View | None:
        return self._host.hypervisor.look(self._order.machine)
