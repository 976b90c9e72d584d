"""A machine brought back from its memory by a real libvirt: paused, then the file goes, and only then does it run."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from nodeagent.assembly import assemble
from nodeagent.host.errors import HostFailure
from nodeagent.host.hypervisor import Hypervisor
from nodeagent.operations import saved_memory
from nodeagent.restoring.allowed import peculiarities
from nodeagent.steps import Host
from tests.changed_state import EMULATOR, changed
from tests.orders import order_in
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import Power
from vmkeep.contract.modes import Mode
from vmkeep.service.settings import NodeAgentSettings, load


class Watched(Hypervisor):
    """Notes whether the state file was there when the machine was let go."""

    def __init__(self, uri: str, state: Path) -> None:
        super().__init__(uri)
        self.state = state
        self.was_there: list[bool] = []

    def resume(self, name: str) -> None:
        self.was_there.append(self.state.exists())
        super().resume(name)


@dataclass(frozen=True)
class Saved:
    """A machine that was saved, and the door to its libvirt."""

    machine: Machine
    host: Host
    hypervisor: Watched
    peculiar: tuple[str, ...] | None

    def bring_back(self, power: Power, *, is_past: bool = False) -> None:
        candidates, name = [PurePosixPath(self.hypervisor.state)], self.machine.name
        saved_memory.bring_back(self.host, name, power, candidates, is_past=is_past, peculiar=self.peculiar)

    def restore_paused(self) -> None:
        path = str(self.hypervisor.state)
        self.hypervisor.restore(path, self.hypervisor.saved_description(path), Power.PAUSED)

    @property
    def power(self) -> Power:
        view = self.hypervisor.look(self.machine.name)
        assert view is not None
        return view.power


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Machine:
    return lab.add_machine(MachineSpec(kind="bios"))


@pytest.fixture
def saved(machine: Machine) -> Iterator[Saved]:
    shop = assemble(load(NodeAgentSettings, machine.node.folder / "nodeagent.toml"), lambda: None).shop
    hypervisor = Watched(machine.node.uri, machine.node.ram / f"{machine.name}.state")
    saved = Saved(machine, replace(shop.host, hypervisor=hypervisor), hypervisor, None)
    if saved.power is Power.OFF:
        hypervisor.start(machine.name)
    elif saved.power is Power.PAUSED:
        hypervisor.resume(machine.name)
    saved = replace(saved, peculiar=peculiarities(hypervisor.description_to_keep(machine.name)))
    hypervisor.save(machine.name, str(hypervisor.state))
    hypervisor.was_there.clear()
    yield saved
    hypervisor.state.unlink(missing_ok=True)
    hypervisor.close()


def test_the_state_file_is_gone_before_the_machine_runs(saved: Saved) -> None:
    saved.bring_back(Power.RUNNING)
    assert saved.power is Power.RUNNING
    assert saved.hypervisor.was_there == [False]


def test_one_that_was_paused_stays_paused_and_its_file_goes(saved: Saved) -> None:
    saved.bring_back(Power.PAUSED)
    assert saved.power is Power.PAUSED
    assert not saved.hypervisor.state.exists()


def test_whoever_was_killed_after_the_restore_is_gone_on_for(saved: Saved) -> None:
    saved.restore_paused()
    saved.bring_back(Power.RUNNING)
    assert saved.power is Power.RUNNING
    assert saved.hypervisor.was_there == [False]


def test_whoever_was_killed_after_the_file_went_is_gone_on_for(saved: Saved) -> None:
    saved.restore_paused()
    saved.hypervisor.state.unlink()
    saved.bring_back(Power.RUNNING)
    assert saved.power is Power.RUNNING


def test_memory_of_the_past_is_never_used_and_goes(saved: Saved) -> None:
    saved.bring_back(Power.RUNNING, is_past=True)
    assert saved.power is Power.RUNNING
    assert not saved.hypervisor.state.exists()


CHANGES = {
    "emulator": lambda xml: xml.replace(EMULATOR, b"/tmp/evil"),
    "disk": lambda xml: xml.replace(b"<source file='", b"<source file='/e"),
    "options": lambda xml: xml.replace(b"</devices>", b"<hostdev/></devices>"),
    "nothing inside": lambda xml: b"",
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_state_file_of_our_own_that_somebody_changed_is_not_used(saved: Saved, what: str) -> None:
    state = saved.hypervisor.state
    content = state.read_bytes()
    changed(state, CHANGES[what])
    with pytest.raises(HostFailure, match="somebody changed it"):
        saved.bring_back(Power.RUNNING)
    assert saved.power is Power.OFF
    state.write_bytes(content)
    saved.bring_back(Power.RUNNING)
    assert saved.power is Power.RUNNING, "it was kept, and serves once it is itself again"


def test_another_emulator_in_our_own_state_file_is_never_run(saved: Saved, tmp_path: Path) -> None:
    """libvirt runs it to ask what it can do, as soon as it reads the description inside."""
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {evil}.was-run\nexit 1\n")
    for path in (evil, *list(tmp_path.parents)[:-2]):
        path.chmod(0o755)
    changed(saved.hypervisor.state, lambda xml: xml.replace(EMULATOR, os.fsencode(evil)))
    with suppress(HostFailure):
        saved.bring_back(Power.RUNNING)
    assert not evil.with_name("evil.was-run").exists()


def test_a_machine_that_was_given_other_devices_meanwhile_is_not_saved(saved: Saved) -> None:
    saved.bring_back(Power.RUNNING)
    order = order_in(Path("/nowhere"), Mode.SNAPSHOTTING, peculiar=saved.peculiar)
    order = order.model_copy(update={"machine": saved.machine.name})
    saved_memory.refuse_if_changed(saved.host, order)
    with pytest.raises(Refused, match="other devices"):
        saved_memory.refuse_if_changed(saved.host, order.model_copy(update={"peculiar": ("another disk",)}))
