"""Controller and agents together, as a cron line on the controller's host has them."""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import services, ticks
from lab.cluster import Lab, LabOptions
from lab.machines import MachineSpec
from lab.slapd import SlapdOptions
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.history import transcript
from tests.cluster.plain import Plain
from tests.conftest import ClusterFactory

TWELVE_STEPS = (Path(__file__).parent / "transcripts/backup.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(cluster: ClusterFactory) -> Iterator[Lab]:
    lab = cluster(LabOptions(nodes=2, machines=0, agents=True, slapd=SlapdOptions(audit=True)))
    yield lab
    lab.down()


def command(lab: Lab, *arguments: str) -> list[str]:
    return [str(services.script("vmkeep-controller")), "--settings", str(lab.controller_settings), *arguments]


def run(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(lab, "run", *arguments), capture_output=True, text=True, timeout=240, check=False)


def leaves(lab: Lab, machine: str) -> list[str]:
    found = lab.directory.search(lab.tree.machine(machine), "(objectClass=sstProvisioning)")
    return sorted(entry["ou"][0] for entry in found)


def test_twelve_steps_as_slapd_recorded_them_and_two_machines_of_one_run(whole: Lab) -> None:
    machines = whole.add_machines([MachineSpec(disks=2), MachineSpec()])
    done = run(whole, *(machine.name for machine in machines))
    assert done.returncode == 0, done.stdout + done.stderr
    taken = {machine.name: leaves(whole, machine.name) for machine in machines}
    first, second = taken.values()
    assert first == second, "all machines of one run share their timestamp"
    for machine in machines:
        leaf = taken[machine.name][0]
        assert transcript(whole, whole.tree.leaf(machine.name, leaf)) == TWELVE_STEPS
        sets.assert_digests(sets.directory_of(machine, leaf))
        assert machine.name in done.stdout


def test_all_are_snapshotted_before_any_is_merged(whole: Lab) -> None:
    machines = whole.add_machines([MachineSpec(kind="bios")] * 3)
    assert run(whole, *(machine.name for machine in machines)).returncode == 0
    names = {machine.name for machine in machines}
    modes = []
    for write in whole.directory.history(whole.tree.machines):
        if any(f"sstVirtualMachine={name}," in write["reqDN"][0] for name in names):
            modes += [m.split(" ", 1)[1] for m in write.get("reqMod", []) if m.startswith("sstProvisioningMode:+")]
    last_snapshot = len(modes) - 1 - modes[::-1].index("snapshotted")
    assert last_snapshot < modes.index("merge")


def test_a_machine_that_is_left_out_stays_out_until_its_backup_subtree_is_deleted(whole: Lab) -> None:
    plain = Plain(whole)
    machine = whole.add_machine(MachineSpec(kind="bios"))
    assert run(whole, machine.name).returncode == 0
    plain.modify(whole.tree.machine_plan(machine.name), "replace sstBackupExcludeFromBackup TRUE")
    before = leaves(whole, machine.name)
    done = run(whole, machine.name)
    assert "left out" in done.stdout
    assert leaves(whole, machine.name) == before
    plain.delete_tree(whole.tree.machine_plan(machine.name))
    assert run(whole, machine.name).returncode == 0
    again = leaves(whole, machine.name)
    assert len(again) == 1
    assert again != before
    assert "sstVirtualizationBackupObjectClass" in plain.read(whole.tree.machine_plan(machine.name))["objectClass"]


def test_one_bad_machine_is_refused_and_the_others_of_the_run_finish(whole: Lab) -> None:
    plain = Plain(whole)
    good, bad = whole.add_machines([MachineSpec(kind="bios")] * 2)
    plain.add_backup_subtree(bad.name, sstBackupRetainDirectory=f"file://{bad.node.folder}/nowhere")
    done = run(whole, good.name, bad.name, "no-such-machine")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "retain root missing" in done.stdout
    assert "no-such-machine" in done.stdout + done.stderr
    (leaf,) = leaves(whole, good.name)
    sets.assert_digests(sets.directory_of(good, leaf))
    (failed,) = leaves(whole, bad.name)
    assert plain.leaf(bad.name, failed)["sstProvisioningReturnValue"] == ["25"]


def test_an_agent_stopped_in_the_middle_holds_up_only_its_own(whole: Lab, tmp_path: Path) -> None:
    """Five machines on two nodes; one agent is killed while it saves; the rest finish, and its own after its return."""
    machines = whole.add_machines([MachineSpec() for _ in range(5)])
    settings = tmp_path / "controller.toml"
    settings.write_text("snapshot_deadline_seconds = 8\n" + whole.controller_settings.read_text())
    stopped = machines[0].node.name
    own = [machine for machine in machines if machine.node.name == stopped]
    others = [machine for machine in machines if machine.node.name != stopped]
    argv = [str(services.script("vmkeep-controller")), "--settings", str(settings), "run"]
    running = subprocess.Popen(
        [*argv, *(machine.name for machine in machines), "--timeout", "60"], stdout=subprocess.PIPE, text=True
    )
    plain = Plain(whole)

    def mode(name: str) -> str:
        found = leaves(whole, name)
        return plain.leaf(name, found[0])["sstProvisioningMode"][0] if found else ""

    until("the first machine to be at work", lambda: mode(own[0].name) == "snapshotting", 30)
    whole.kill_agent(stopped)
    for machine in others:
        until(f"{machine.name} to finish", lambda name=machine.name: mode(name) == "finished", 60)
    assert any(mode(machine.name) != "finished" for machine in own)
    whole.start_agent(stopped)
    for machine in own:
        until(f"{machine.name} to finish", lambda name=machine.name: mode(name) == "finished", 60)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 0, printed
    for machine in machines:
        (leaf,) = leaves(whole, machine.name)
        assert plain.leaf(machine.name, leaf)["sstProvisioningReturnValue"] == ["0"]
        sets.assert_digests(sets.directory_of(machine, leaf))
        log = ticks.read_serial(machine.serial)
        assert (log.missing, log.complaints) == ([], ())
        sets.assert_whole(machine.disks[0])


def test_of_a_guests_backups_the_plans_number_is_left_and_what_is_held_whoever_dies(whole: Lab) -> None:
    plain = Plain(whole)
    machine = whole.add_machine(MachineSpec())
    plain.add_backup_subtree(machine.name, sstBackupNumberOfIterations="2")

    def backed_up() -> str:
        done = run(whole, machine.name)
        assert done.returncode == 0, done.stdout + done.stderr
        return max(on_disk())

    def on_disk() -> list[str]:
        folder = sets.directory_of(machine, "x").parent
        return sorted(path.name for path in folder.iterdir())

    first, second, third = backed_up(), backed_up(), backed_up()
    assert leaves(whole, machine.name) == on_disk() == [second, third]
    held = plain.console("hold", machine.name, second, "--reason", "the audit")
    assert held.returncode == 0, held.stderr
    fourth = backed_up()
    assert leaves(whole, machine.name) == on_disk() == [second, third, fourth], first
    for leaf in on_disk():
        sets.assert_digests(sets.directory_of(machine, leaf))
    refused = plain.console("delete", machine.name, second, "--yes")
    assert (refused.returncode, "it is held: the audit" in refused.stderr) == (1, True), refused
    plain.edit("delete-iteration", machine.name, second)
    said = plain.wait(machine.name, second, "deleted")
    assert said["sstProvisioningReturnValue"] == ["22"], "the agent reads the hold itself"
    assert on_disk() == [second, third, fourth]
    assert plain.console("abort", machine.name).returncode == 0
    assert plain.console("release", machine.name, second).returncode == 0
    assert plain.console("prune", machine.name).returncode == 0
    until("the set to be gone", lambda: on_disk() == [third, fourth], 30)
    plain.wait(machine.name, second, "deleted")
    arguments = ["--settings", str(whole.controller_settings), "serve"]
    killed = [sys.executable, "-m", "tests.faults.killed_controller", "before", *arguments]
    assert subprocess.run(killed, stderr=subprocess.DEVNULL, timeout=60).returncode == -signal.SIGKILL
    assert leaves(whole, machine.name) == [second, third, fourth], "the leaf goes last"
    fifth = backed_up()
    assert leaves(whole, machine.name) == on_disk() == [fourth, fifth]
    assert ticks.read_serial(machine.serial).missing == []


def test_progress_is_noted_at_most_every_five_seconds(whole: Lab) -> None:
    plain = Plain(whole)
    machine = whole.add_machine(MachineSpec(content_mib=48, disk_mib=128))
    plain.add_backup_subtree(machine.name, sstVirtualizationBandwidthMerge="4")
    assert run(whole, machine.name).returncode == 0
    (leaf,) = leaves(whole, machine.name)
    noted = []
    for write in whole.directory.history(whole.tree.leaf(machine.name, leaf)):
        changes = write.get("reqMod", [])
        moves = any(change.startswith("sstProvisioningMode:+") and "merging" not in change for change in changes)
        if any(change.startswith("vmkeepPercent") for change in changes) and not moves:
            noted.append(time.mktime(time.strptime(write["reqStart"][0][:14], "%Y%m%d%H%M%S")))
    assert noted, "progress is written during a merge of some seconds"
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(noted))
