"""A machine brought back from its memory by a real libvirt: paused, then the file goes, and only then does it run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from nodeagent.assembly import assemble
from nodeagent.host.hypervisor import Hypervisor
from nodeagent.operations import saved_memory
from nodeagent.steps import Host
from vmkeep.contract.machine import Power
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

    def bring_back(self, power: Power, *, is_past: bool = False) -> None:
        candidates = [PurePosixPath(self.hypervisor.state)]
        saved_memory.bring_back(self.host, self.machine.name, power, candidates, is_past=is_past)

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
    saved = Saved(machine, replace(shop.host, hypervisor=hypervisor), hypervisor)
    if saved.power is Power.OFF:
        hypervisor.start(machine.name)
    elif saved.power is Power.PAUSED:
        hypervisor.resume(machine.name)
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
