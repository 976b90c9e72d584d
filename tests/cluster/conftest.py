"""One lab for this folder: two nodes with agents and no controller; tests add machines of their own."""

from collections.abc import Iterator

import libvirt
import pytest

from lab.cluster import Lab, LabOptions
from lab.machines import Machine, MachineSpec
from tests.cluster.plain import Plain
from tests.cluster.stolen import Stolen
from tests.conftest import ClusterFactory


@pytest.fixture(scope="package")
def agents(cluster: ClusterFactory) -> Iterator[Lab]:
    lab = cluster(LabOptions(nodes=2, machines=0, agents=True))
    yield lab
    lab.down()


@pytest.fixture(autouse=True)
def guests_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A guest that counts takes a good part of a core; the next test shall have it."""
    yield
    if {"backed_up", "with_agent"} & set(request.fixturenames):
        return  # a machine of a whole module; its fixture ends it
    for name in {"agents", "whole"} & set(request.fixturenames):
        lab = request.getfixturevalue(name)
        for machine in lab.machines.values():
            if machine.spec.kind != "bios":
                end(machine)


@pytest.fixture(autouse=True)
def agents_outlive_a_failed_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails between an agent's end and its start shall not fail those that follow."""
    yield
    if "agents" in request.fixturenames:
        lab = request.getfixturevalue("agents")
        running = {process.name for process in lab.processes()}
        for node in lab.nodes:
            if f"nodeagent {node}" not in running:
                lab.start_agent(node)


def end(machine: Machine) -> None:
    try:
        machine.node.domain(machine.name).destroy()
    except libvirt.libvirtError:
        return  # off already, or undefined by its test


@pytest.fixture
def rare(request: pytest.FixtureRequest) -> None:
    """Asked for first by what takes long, or shows little that a neighbour does not."""
    if not request.config.getoption("--all-faults"):
        pytest.skip("with --all-faults")


@pytest.fixture
def plain(agents: Lab) -> Plain:
    return Plain(agents)


@pytest.fixture(scope="module")
def stolen_set(agents: Lab) -> Stolen:
    """A machine and a set of it that somebody else had their hands on."""
    plain = Plain(agents)
    machine = agents.add_machine(MachineSpec(kind="bios"))
    return Stolen(plain.lab, plain, machine, plain.back_up(machine.name))
