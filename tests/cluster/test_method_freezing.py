"""Method disk and the agent inside a guest: filesystems are frozen for the instant, and go on whatever becomes of it.

A set is called quiesced only where that is known.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from lab import guest_agent, ticks
from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.conftest import end
from tests.cluster.plain import Plain, timestamp
from tests.cluster.test_method_limits import begun, retained
from tests.cluster.test_methods import with_method


@pytest.fixture(scope="module")
def with_agent(agents: Lab) -> Iterator[Machine]:
    machine = agents.add_machine(MachineSpec(agent=True))
    guest_agent.wait_ready(machine)
    with_method(Plain(agents), machine, "disk", vmkeepFreezeSeconds="2")
    yield machine
    end(machine)


def assert_writes_to_its_filesystem(machine: Machine) -> None:
    newest = ticks.newest_file_write(machine.serial)
    until("the guest to write to its filesystem", lambda: ticks.newest_file_write(machine.serial) > newest + 2, 30)
    assert not guest_agent.is_frozen(machine)


def backed_up(plain: Plain, machine: Machine) -> tuple[str, str, Path]:
    """A whole backup: what it is said to be worth, what is said of its snapshot, its image."""
    leaf = timestamp()
    plain.add_leaf(machine.name, leaf)
    plain.step(machine.name, leaf, "snapshot", "snapshotted")
    return finished(plain, machine, leaf)


def finished(plain: Plain, machine: Machine, leaf: str) -> tuple[str, str, Path]:
    said = plain.leaf(machine.name, leaf).get("vmkeepMessage", [""])[0]
    plain.step(machine.name, leaf, "merge", "merged")
    image = Path(retained(plain, machine, leaf))
    worth = plain.leaf(machine.name, leaf)["vmkeepConsistency"][0]
    assert sets.manifest(image.parent)["consistency"] == worth
    return worth, said, image


def silent_for(machine: Machine, seconds: float) -> None:
    """The agent inside takes questions, and answers none of them before so long."""
    pid = "$(/bin/busybox cat /run/qemu-ga.pid)"
    script = f"agent={pid}; /bin/busybox usleep 300000; /bin/busybox kill -STOP $agent; "
    guest_agent.start(machine, f"{script} /bin/busybox usleep {int(seconds * 1e6)}; /bin/busybox kill -CONT $agent")
    until("the agent inside to fall silent", lambda: not answers(machine), 10)


def answers(machine: Machine) -> bool:
    try:
        guest_agent.ask(machine, "guest-ping", limit=1)
    except libvirt.libvirtError:
        return False
    return True


def test_filesystems_are_frozen_for_the_instant_and_clean_in_the_set(plain: Plain, with_agent: Machine) -> None:
    before = answer_limit(with_agent)
    worth, said, image = backed_up(plain, with_agent)
    assert (worth, said) == ("quiesced", "")
    assert not ticks.needs_recovery(image)
    assert_writes_to_its_filesystem(with_agent)
    assert answer_limit(with_agent) == before == -2, "others may wait for the agent as long as before"


def answer_limit(machine: Machine) -> int:
    """How long libvirt waits for the agent inside, as it keeps it; -2: for ever, as every machine begins."""
    status = etree.parse(machine.node.folder / "run/qemu" / f"{machine.name}.xml")
    return int(status.findtext(".//agentTimeout"))


def test_a_freeze_that_the_guest_refuses_is_not_called_quiesced(plain: Plain, with_agent: Machine) -> None:
    guest_agent.refuse(with_agent, "guest-fsfreeze-freeze")
    worth, said, image = backed_up(plain, with_agent)
    guest_agent.refuse(with_agent)
    assert worth == "crash"
    assert "could not be frozen" in said
    assert ticks.needs_recovery(image)
    assert_writes_to_its_filesystem(with_agent)


def test_an_agent_inside_that_is_silent_is_waited_for_as_long_as_the_plan_says(
    plain: Plain, with_agent: Machine
) -> None:
    silent_for(with_agent, 12)
    began = time.monotonic()
    leaf = begun(plain, with_agent)
    assert time.monotonic() - began < 30
    until("the agent inside to answer", lambda: answers(with_agent), 30)
    assert_writes_to_its_filesystem(with_agent)
    worth, said, _ = finished(plain, with_agent, leaf)
    assert worth == "crash"
    assert "could not be frozen" in said


def test_an_agent_inside_that_dies_with_frozen_filesystems_leaves_none_frozen(
    plain: Plain, with_agent: Machine
) -> None:
    guest_agent.when_frozen(with_agent, "KILL", after=0)
    leaf = begun(plain, with_agent)
    guest_agent.wait_ready(with_agent)
    assert_writes_to_its_filesystem(with_agent)
    worth, _, image = finished(plain, with_agent, leaf)
    assert worth == "crash" or not ticks.needs_recovery(image), "where it died after the thaw, it was quiesced"


def test_our_agent_killed_while_filesystems_are_being_frozen_leaves_none_frozen(
    agents: Lab, plain: Plain, with_agent: Machine
) -> None:
    plain.modify(plain.lab.tree.machine_plan(with_agent.name), "replace vmkeepFreezeSeconds 20")
    silent_for(with_agent, 3)
    leaf = timestamp()
    plain.add_leaf(with_agent.name, leaf)
    plain.ask(with_agent.name, leaf, "snapshot")
    journals = with_agent.node.state / "journal"
    until("the freeze to begin", lambda: any('"freeze"' in path.read_text() for path in journals.glob("*.journal")), 20)
    agents.kill_agent(with_agent.node.name)
    agents.start_agent(with_agent.node.name)
    assert plain.wait(with_agent.name, leaf, "snapshotted")["sstProvisioningMode"] == ["snapshotted"]
    assert_writes_to_its_filesystem(with_agent)
    worth, _, image = finished(plain, with_agent, leaf)
    assert worth == "crash" or not ticks.needs_recovery(image), "it is not called better than it is known to be"
