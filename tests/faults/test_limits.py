"""What does not answer blocks the work that needs it and no other, and that is told: on the leaf, in the log, by check.

What hangs is real: a stopped filesystem below the backup root, a stopped libvirt daemon, a stopped slapd.
"""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from lab import services
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.conftest import ClusterFactory
from tests.faults.belt import Belt
from tests.faults.stage import stage

LIMIT = 60.0
SPEC = MachineSpec(kind="bios", content_mib=1)


@pytest.fixture(scope="module")
def served(cluster: ClusterFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Belt]:
    """A node with an agent that tells of silence soon."""
    with stage(tmp_path_factory.mktemp("stage"), cluster) as belt:
        text = belt.agent_settings.read_text()
        soon = "silent_seconds = 2\ncheck_seconds = 8\nprogress_seconds = 1\n"
        belt.agent_settings.write_text(text.replace("\n[directory]\n", f"{soon}\n[directory]\n"))
        belt.start_agent()
        yield belt


def snapshotted(belt: Belt) -> tuple[Machine, str]:
    machine = belt.lab.add_machine(SPEC)
    leaf = belt.unused_timestamp()
    belt.plain.add_leaf(machine.name, leaf)
    belt.plain.step(machine.name, leaf, "snapshot", "snapshotted")
    return machine, leaf


def message(belt: Belt, machine: Machine, leaf: str) -> str:
    return belt.plain.leaf(machine.name, leaf).get("vmkeepMessage", [""])[0]


def checked(belt: Belt) -> subprocess.CompletedProcess[str]:
    argv = [services.script("vmkeep-nodeagent"), "--settings", belt.agent_settings, "check"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=False)


def test_a_mount_that_hangs_blocks_what_is_written_there_and_no_other_machine(served: Belt) -> None:
    plain = served.plain
    machine, leaf = snapshotted(served)
    plain.step(machine.name, leaf, "merge", "merged")
    other = served.lab.add_machine(SPEC)
    served.backup.process.kill(signal.SIGSTOP)
    try:
        plain.ask(machine.name, leaf, "retain")
        until("the leaf to say it", lambda: "no progress in retaining for 2 s" in message(served, machine, leaf), LIMIT)
        later = served.unused_timestamp()
        plain.add_leaf(other.name, later)
        plain.ask(other.name, later, "snapshot")
        said = checked(served)
        assert said.returncode != 0
        assert f"NOT WELL  root {served.backup.folder}: does not answer within 8 s" in said.stdout
        assert "well      libvirt" in said.stdout
    finally:
        served.backup.process.kill(signal.SIGCONT)
    assert plain.wait(machine.name, leaf, "retained")["sstProvisioningMode"] == ["retained"]
    assert message(served, machine, leaf) == ""
    sets.assert_digests(sets.directory_of(machine, leaf))
    assert plain.wait(other.name, later, "snapshotted")["sstProvisioningMode"] == ["snapshotted"]


def test_an_agent_that_starts_while_a_mount_hangs_merges_what_has_nothing_to_do_with_it(served: Belt) -> None:
    machine, leaf = snapshotted(served)
    served.lab.kill_agent(served.node)
    served.backup.process.kill(signal.SIGSTOP)
    try:
        served.start_agent()
        served.plain.step(machine.name, leaf, "merge", "merged")
    finally:
        served.backup.process.kill(signal.SIGCONT)


def test_a_libvirt_daemon_that_hangs_blocks_no_copy_and_is_told(served: Belt) -> None:
    machine, leaf = snapshotted(served)
    served.plain.step(machine.name, leaf, "merge", "merged")
    stuck = served.lab.add_machine(SPEC)
    daemon = served.lab.nodes[served.node].libvirtd
    assert daemon is not None
    daemon.kill(signal.SIGSTOP)
    try:
        later = served.unused_timestamp()
        served.plain.add_leaf(stuck.name, later)
        served.plain.ask(stuck.name, later, "snapshot")
        served.plain.step(machine.name, leaf, "retain", "retained")
        assert "NOT WELL  libvirt: " in checked(served).stdout
        log = served.lab.nodes[served.node].folder / "log/nodeagent.log"
        until(
            "the log to say it", lambda: "did not answer" in log.read_text() or "not answer" in log.read_text(), LIMIT
        )
    finally:
        daemon.kill(signal.SIGCONT)
    assert served.plain.wait(stuck.name, later, "snapshotted")["sstProvisioningMode"] == ["snapshotted"]


def test_a_directory_that_hangs_is_told_by_check_in_time(served: Belt) -> None:
    served.lab.directory.pause()
    try:
        said = checked(served)
    finally:
        served.lab.directory.unpause()
    assert said.returncode != 0
    assert "NOT WELL  directory: " in said.stdout
    assert "well      libvirt" in said.stdout
