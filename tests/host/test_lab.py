"""The lab itself: what stands on it may trust it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from lab import guest_agent, mounts, programs, ticks
from lab.cluster import Lab, LabOptions, take_down
from lab.errors import LabError
from lab.filesystems import is_known
from lab.hypervisor import NodeOptions
from lab.machines import Machine, MachineSpec
from lab.processes import all_pids, stop
from lab.slapd import Slapd, SlapdOptions
from lab.waiting import until
from tests.conftest import require

ClusterFactory = Callable[..., Lab]
BIOS = MachineSpec(kind="bios")


@pytest.fixture(scope="module")
def small(cluster: ClusterFactory) -> Iterator[Lab]:
    """One node with a Linux machine of two disks and a firmware-only one."""
    lab = cluster(LabOptions(machine=MachineSpec(disks=2), slapd=SlapdOptions(audit=True)))
    lab.add_machine(BIOS)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def with_agent(small: Lab) -> Machine:
    """A Linux machine with a guest agent."""
    return small.add_machine(MachineSpec(agent=True), name="with-agent")


def domain_of(machine: Machine) -> Any:
    return machine.node.domain(machine.name)


def mentioned_in_processes(folder: Path) -> list[str]:
    found = []
    for pid in all_pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and pid != os.getpid():
            found.append(words)
    return found


def assert_nothing_left(folder: Path) -> None:
    assert mentioned_in_processes(folder) == []
    assert mounts.below(folder) == []
    assert not folder.exists() or list(folder.iterdir()) == []


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lab", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_a_linux_machine_counts_without_leaving_numbers_out(small: Lab) -> None:
    small.wait_for_count("vm-0001", more=120)
    log = ticks.read_serial(small.machines["vm-0001"].serial)
    assert log.counts[0].seq == 1
    assert log.missing == []
    assert log.checks and all(log.checks)


def test_every_count_on_the_serial_log_is_on_every_disk(small: Lab) -> None:
    machine = small.machines["vm-0001"]
    small.domain("vm-0001").suspend()
    try:
        printed = ticks.last_count(machine.serial)
        for disk in machine.disks:
            assert 0 <= ticks.newest_on_disk(disk) - printed <= 1
    finally:
        small.domain("vm-0001").resume()


def test_a_lost_pattern_is_noticed_inside_the_guest(small: Lab) -> None:
    machine = small.add_machine(MachineSpec(), name="damaged")
    small.domain("damaged").destroy()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 3M 512", str(machine.disks[0])], check=True, timeout=20)
    small.domain("damaged").create()
    until("a complaint", lambda: ticks.read_serial(machine.serial).complaints, 60)
    # At boot, or (where the first run ended in the middle of a line) with the next check.
    assert ticks.read_serial(machine.serial).complaints[0] in ("P vda BAD 3145728", "V 200 BAD vda 3145728")
    small.domain("damaged").destroy()


def test_a_machine_goes_on_from_the_newest_count_on_its_disk(small: Lab) -> None:
    machine = small.add_machine(MachineSpec(), name="again")
    small.kill_qemu("again")
    until("libvirt to notice", lambda: not small.domain("again").isActive(), 20)
    on_disk, printed = ticks.newest_on_disk(machine.disks[0]), ticks.last_count(machine.serial)
    small.domain("again").create()
    small.wait_for_count("again", more=60)
    log = ticks.read_serial(machine.serial)
    assert log.missing in ([], [(printed, on_disk + 1)])
    assert all(log.checks)
    small.domain("again").destroy()


def test_a_follower_sees_how_long_a_machine_was_away(small: Lab) -> None:
    with ticks.Follower(small.machines["vm-0001"].serial) as follower:
        small.wait_for_count("vm-0001", more=20)
        small.domain("vm-0001").suspend()
        until("half a second", lambda: follower.idle() > 0.5, 5)
        small.domain("vm-0001").resume()
        small.wait_for_count("vm-0001", more=20)
    assert 0.5 <= follower.widest_gap() < 2


def test_lab_json_says_where_everything_is(small: Lab) -> None:
    text = json.loads((small.folder / "lab.json").read_text())
    assert set(text) == {"directory", "controller", "nodes", "machines", "processes"}
    assert set(text["directory"]["identities"]) == {"admin", "controller", "node-01.lab.example"}
    assert set(text["nodes"][0]) == {"name", "libvirt_uri", "settings", "images", "retain", "backup", "ram"}
    assert text["machines"][1]["kind"] == "bios"
    assert len(text["machines"][0]["disks"]) == 2
    assert {each["name"] for each in text["processes"]} >= {"slapd", "libvirtd node-01.lab.example", "qemu vm-0001"}
    for identity in text["directory"]["identities"].values():
        path = Path(identity["password_file"])
        assert path.stat().st_mode & 0o777 == 0o600
        assert not path.read_text().endswith("\n")


def test_machines_in_the_directory_have_their_disks_and_no_plan(small: Lab) -> None:
    entries = small.directory.search(small.tree.machine("vm-0001"))
    disks = [entry["sstSourceFile"][0] for entry in entries if "sstSourceFile" in entry]
    assert disks == [str(path) for path in small.machines["vm-0001"].disks]
    assert not any(entry["dn"][0].startswith("ou=backup") for entry in entries)


def test_the_directory_keeps_a_history_of_writes(small: Lab) -> None:
    admin = small.directory.identities["admin"]
    dn = small.tree.machine("vm-0001")
    small.directory.modify(f"dn: {dn}\nchangetype: modify\nreplace: sstDisplayName\nsstDisplayName: x\n", admin)
    last = small.directory.history(dn)[-1]
    assert last["reqAuthzID"] == [admin.dn]
    assert "sstDisplayName:= x" in last["reqMod"]


def test_guests_outlive_a_killed_libvirtd(small: Lab) -> None:
    node = small.nodes["node-01.lab.example"]
    node.kill_libvirtd()
    small.wait_for_count("vm-0001", more=5)
    node.restart_libvirtd()
    assert small.domain("vm-0001").isActive()


def test_machines_can_be_off_or_paused_and_share_basenames(small: Lab) -> None:
    off = small.add_machine(MachineSpec(kind="bios", state="off", disks=2, equal_basenames=True), name="off")
    paused = small.add_machine(MachineSpec(kind="bios", state="paused", content_mib=4), name="paused")
    assert {path.name for path in off.disks} == {"disk.qcow2"}
    assert not small.domain("off").isActive()
    assert small.domain("paused").state()[0] == 3
    assert paused.disks[0].stat().st_size > 4 << 20


def test_the_time_of_every_synced_write_of_a_guest_is_known(small: Lab) -> None:
    first = small.wait_for_count("vm-0001")
    last = small.wait_for_count("vm-0001", more=50)
    latencies = ticks.write_latencies(small.machines["vm-0001"].serial, first, last)
    assert list(latencies) == list(range(first, last + 1))
    assert all(0 < taken < 10 for taken in latencies.values())


def test_a_guest_agent_freezes_and_thaws_the_filesystem_that_its_guest_writes_to(with_agent: Machine) -> None:
    guest_agent.wait_ready(with_agent)
    before = ticks.newest_file_write(with_agent.serial)
    assert domain_of(with_agent).fsFreeze() == 1
    assert guest_agent.is_frozen(with_agent)
    frozen = ticks.newest_file_write(with_agent.serial)
    counted = ticks.last_count(with_agent.serial)
    until("the guest to count on", lambda: ticks.last_count(with_agent.serial) > counted + 50, 20)
    assert before <= ticks.newest_file_write(with_agent.serial) <= frozen + 1
    assert domain_of(with_agent).fsThaw() == 1
    until("writes", lambda: ticks.newest_file_write(with_agent.serial) > frozen + 1, 20)
    assert not guest_agent.is_frozen(with_agent)


def test_only_a_frozen_filesystem_on_a_disk_needs_no_recovery(with_agent: Machine) -> None:
    guest_agent.wait_ready(with_agent)
    assert ticks.needs_recovery(with_agent.disks[0])
    domain_of(with_agent).fsFreeze()
    try:
        assert not ticks.needs_recovery(with_agent.disks[0])
    finally:
        domain_of(with_agent).fsThaw()


def test_a_guest_agent_can_be_told_to_refuse_a_freeze(with_agent: Machine) -> None:
    guest_agent.wait_ready(with_agent)
    guest_agent.refuse(with_agent, "guest-fsfreeze-freeze")
    with pytest.raises(libvirt.libvirtError, match="disabled"):
        domain_of(with_agent).fsFreeze()
    guest_agent.refuse(with_agent)
    assert domain_of(with_agent).fsFreeze() == 1
    domain_of(with_agent).fsThaw()


def says_frozen(machine: Machine) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        return guest_agent.is_frozen(machine)
    return False


def thaws(machine: Machine) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        return bool(domain_of(machine).fsThaw() >= 0)
    return False


def test_a_guest_agent_killed_while_frozen_comes_back_and_thaws(with_agent: Machine) -> None:
    guest_agent.wait_ready(with_agent)
    domain_of(with_agent).agentSetResponseTimeout(5)
    guest_agent.when_frozen(with_agent, "KILL", after=0)
    with contextlib.suppress(libvirt.libvirtError):  # on a busy machine the signal may come after its answer
        domain_of(with_agent).fsFreeze()
    guest_agent.wait_ready(with_agent)
    until("the agent to know of it", lambda: says_frozen(with_agent), 30)
    frozen = ticks.newest_file_write(with_agent.serial)
    until("the agent to thaw them", lambda: thaws(with_agent), 30)
    until("writes", lambda: ticks.newest_file_write(with_agent.serial) > frozen + 1, 20)


def test_a_node_may_have_a_filesystem_of_its_own_that_clones(cluster: ClusterFactory, tmp_path: Path) -> None:
    require([] if is_known("xfs") else ["this kernel has no XFS"])
    options = NodeOptions(filesystem="xfs", filesystem_mib=512, backup=tmp_path / "backup")
    with Lab(tmp_path / "lab", LabOptions(machine=BIOS, node=options)) as lab:
        node = lab.nodes["node-01.lab.example"]
        image = lab.machines["vm-0001"].disks[0]
        devices = [path.stat().st_dev for path in (image, node.retain, node.backup)]
        assert devices[0] == devices[1] != devices[2]
        programs.run(["cp", "--reflink=always", image, node.retain / "clone"])
        assert lab.domain("vm-0001").isActive()
    assert_nothing_left(tmp_path / "lab")
    assert str(tmp_path) not in programs.run(["losetup", "--list"])


def test_a_uefi_machine_has_variables_and_a_tpm(small: Lab) -> None:
    machine = small.add_machine(MachineSpec(kind="uefi", tpm=True), name="firmware")
    assert machine.nvram.stat().st_size > 0
    assert list((machine.node.libvirt_state / "swtpm").rglob("tpm2-00.permall"))
    small.domain("firmware").destroy()


def test_up_and_down_by_command_leave_nothing(cluster: ClusterFactory, tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    up = command("up", "--dir", folder, "--kind", "bios", "--nodes", 2, "--machines", 2)
    assert up.returncode == 0, up.stderr
    status = command("status", "--dir", folder)
    assert status.returncode == 0
    assert "qemu vm-0002" in status.stdout
    again = command("up", "--dir", folder)
    assert again.returncode == 1
    assert "there is a lab in" in again.stderr
    assert command("down", "--dir", folder).returncode == 0
    assert_nothing_left(folder)
    assert not folder.exists()
    assert command("down", "--dir", folder).returncode == 0
    assert command("status", "--dir", folder).returncode == 1


def test_a_half_dead_lab_is_cleared_away(cluster: ClusterFactory, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", LabOptions(machine=BIOS))
    lab.up()
    try:
        node = lab.nodes["node-01.lab.example"]
        (lab.folder / "lab.json").unlink()
        lab.kill_directory()
        stop([process for process in (node.reaper, node.libvirtd) if process], grace=0)
        assert mentioned_in_processes(lab.folder)
    finally:
        assert take_down(lab.folder)
    assert_nothing_left(lab.folder)


def test_a_failed_up_cleans_up_after_itself(cluster: ClusterFactory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "backup"
    too_big = LabOptions(machine=MachineSpec(kind="bios", memory_mib=1 << 24), node=NodeOptions(backup=elsewhere))
    with pytest.raises(Exception, match=r"cannot set up guest memory|annot allocate"):
        Lab(tmp_path / "lab", too_big).up()
    assert_nothing_left(tmp_path / "lab")
    assert not elsewhere.exists()


def test_up_refuses_a_folder_that_holds_something_else(cluster: ClusterFactory, tmp_path: Path) -> None:
    precious = tmp_path / "nodes"
    precious.mkdir()
    with pytest.raises(LabError, match="holds nodes already"):
        Lab(tmp_path).up()
    assert precious.exists()


def test_a_folder_with_a_very_long_name_works(cluster: ClusterFactory, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    with Lab(folder, LabOptions(machine=BIOS)) as lab:
        assert lab.domain("vm-0001").isActive()
        sockets = lab.nodes["node-01.lab.example"].sockets
        assert sockets.is_relative_to("/tmp")
    assert not sockets.exists()
    assert_nothing_left(folder)


def test_agents_are_ready_when_started_and_can_be_killed(small: Lab) -> None:
    node = "node-01.lab.example"
    first = small.start_agent(node)
    assert first.alive
    with pytest.raises(LabError, match="runs already"):
        small.start_agent(node)
    small.kill_agent(node)
    assert not first.alive
    second = small.start_agent(node)
    text = json.loads((small.folder / "lab.json").read_text())
    assert {"name": f"nodeagent {node}", "pid": second.pid} in text["processes"]
    small.stop_agent(node)
    assert not second.alive


def test_a_directory_may_have_another_suffix(slapd_factory: Callable[..., Slapd]) -> None:
    server = slapd_factory(SlapdOptions(suffix="o=stepping-stone,c=ch"))
    [entry] = server.search("ou=nodes,ou=virtualization,ou=services,o=stepping-stone,c=ch", "(ou=nodes)", "base")
    assert entry["ou"] == ["nodes"]
    assert server.identities["controller"].dn == "cn=controller,ou=administration,o=stepping-stone,c=ch"
