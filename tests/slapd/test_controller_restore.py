"""Restores and deletions on a real slapd: the controller between an admin's edits and a scripted agent."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.slapd import REPOSITORY
from tests.slapd.cluster_of_peers import ClusterOfPeers, Script
from vmkeep.contract.modes import Mode

MACHINE = "machine-01"  # the edits' own example
TIMESTAMP = "20260101T030000Z"
OLDER = "20251231T030000Z"
LEFT = {"vmkeepConflicts", "vmkeepEntry", "vmkeepEntryBefore", "vmkeepRestoreDisk", "sstRestoreVMWithoutState"}
RESTORE = """\
cn=admin unretainSmallFiles 0 0
agent unretainingSmallFiles 0 0
agent unretainedSmallFiles now 0
cn=admin unretainLargeFiles 0 0
agent unretainingLargeFiles 0 0
agent unretainedLargeFiles now 0
controller restore 0 0
agent restoring 0 0
agent restored now 0
controller finished now 0
""".splitlines()
Entries = dict[str, dict[str, list[str]]]


@pytest.fixture
def cluster(cluster_of_peers: ClusterOfPeers) -> Iterator[ClusterOfPeers]:
    """A machine with two disks, a good backup and an older one, and another machine; gone again afterwards."""
    cluster = cluster_of_peers
    cluster.add_machines([MACHINE, "db"])
    cluster.slapd.add(f"dn: {devices(cluster)}\nobjectClass: organizationalUnit\nou: devices\n")
    for target in ("vda", "vdb"):
        cluster.slapd.add(disk(cluster, target, f"/var/virtualization/now/{target}.qcow2"))
    for machine, timestamp in ((MACHINE, OLDER), (MACHINE, TIMESTAMP), ("db", OLDER)):
        cluster.add_leaf(machine, timestamp, "finished", "20260101T031500Z", sstProvisioningReturnValue="0")
    yield cluster
    cluster.close()
    for machine in cluster.slapd.search(cluster.tree.machines, "(objectClass=*)", "one", "ou"):
        cluster.slapd.delete(machine["dn"][0])


def devices(cluster: ClusterOfPeers, machine: str = MACHINE) -> str:
    return f"ou=devices,{cluster.tree.machine(machine)}"


def disk(cluster: ClusterOfPeers, target: str, path: str, machine: str = MACHINE) -> str:
    return (
        f"dn: sstDisk={target},{devices(cluster, machine)}\nobjectClass: sstVirtualizationVirtualMachineDisk\n"
        f"sstDisk: {target}\nsstDevice: disk\nsstType: file\nsstTargetBus: virtio\nsstSourceFile: {path}\n"
    )


def saved(cluster: ClusterOfPeers) -> str:
    """The machine as it was: less memory, another node, vda elsewhere, no vdb yet, and vdc still there."""
    machine, *_ = cluster.machine_ldif(MACHINE, "elsewhere", with_backup=False).split("\n\n")
    machine = machine.replace("sstMemory: 1048576", "sstMemory: 524288")
    devices_entry = f"dn: {devices(cluster)}\nobjectClass: organizationalUnit\nou: devices\n"
    disks = [disk(cluster, target, f"/var/virtualization/then/{target}.qcow2") for target in ("vda", "vdc")]
    return "\n".join([machine.rstrip("\n") + "\n", devices_entry, *disks])


def entries(cluster: ClusterOfPeers, *attributes: str) -> Entries:
    """All entries at and below the machines; with `+` also who wrote them, and when."""
    found = cluster.slapd.search(cluster.tree.machines, "(objectClass=*)", "sub", *attributes)
    return {entry["dn"][0]: {name: sorted(values) for name, values in sorted(entry.items())} for entry in found}


def without(all_entries: Entries, cluster: ClusterOfPeers, *, machine: bool) -> Entries:
    """Without the machine and its devices, or without everything else; always without the leaf of the restore."""
    own, hers = cluster.tree.machine(MACHINE), devices(cluster)
    leaf = cluster.tree.leaf(MACHINE, TIMESTAMP)
    return {
        dn: entry
        for dn, entry in all_entries.items()
        if dn != leaf and ((dn == own or dn.endswith(hers)) is not machine)
    }


def edit(cluster: ClusterOfPeers, name: str, of: str = "") -> None:
    """What the admin does; `of` is put in the place of the first mode, as the edit says."""
    text = (REPOSITORY / f"ldif/edits/{name}.ldif").read_text()
    if of:
        text = re.sub(r"(?m)^(delete: sstProvisioningMode\nsstProvisioningMode: ).*", rf"\1{of}", text)
    cluster.slapd.modify(text, cluster.slapd.identities["admin"])


def leaf(cluster: ClusterOfPeers) -> dict[str, list[str]]:
    [found] = [leaf for leaf in cluster.leaves(MACHINE) if leaf["ou"] == [TIMESTAMP]]
    return found


def mode(cluster: ClusterOfPeers) -> tuple[str, str]:
    found = leaf(cluster)
    return found["sstProvisioningMode"][0], found["sstProvisioningReturnValue"][0]


@contextmanager
def serving(cluster: ClusterOfPeers, **settings: object) -> Iterator[None]:
    process = cluster.start("--settings", str(cluster.controller_file(**settings)), "serve")
    yield
    process.send_signal(signal.SIGTERM)
    ended = cluster.ended(process)
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err + ended.out


def go_on_from_small_files(cluster: ClusterOfPeers) -> None:
    cluster.wait_for("small files are back", lambda: mode(cluster) == ("unretainedSmallFiles", "0"))
    edit(cluster, "restore-large-files")


def test_a_restore_by_edits_brings_the_entry_in_line_and_touches_nothing_else(cluster: ClusterOfPeers) -> None:
    everything = entries(cluster, "*", "+")
    edit(cluster, "restore-without-state")
    with serving(cluster), cluster.peer(Script(saved={MACHINE: saved(cluster)})):
        edit(cluster, "restore-small-files")
        go_on_from_small_files(cluster)
        cluster.wait_for("the restore is finished", lambda: mode(cluster) == ("finished", "0"))

    assert cluster.transcript(MACHINE)[-len(RESTORE) :] == RESTORE
    assert not LEFT & leaf(cluster).keys()
    now = entries(cluster)
    own = now[cluster.tree.machine(MACHINE)]
    assert (own["sstMemory"], own["sstNode"]) == (["524288"], ["n1"])
    assert now[f"sstDisk=vda,{devices(cluster)}"]["sstSourceFile"] == ["/var/virtualization/then/vda.qcow2"]
    assert f"sstDisk=vdc,{devices(cluster)}" in now
    assert f"sstDisk=vdb,{devices(cluster)}" not in now
    untouched = without(entries(cluster, "*", "+"), cluster, machine=True)
    assert untouched == without(everything, cluster, machine=True)
    assert cluster.tree.leaf(MACHINE, OLDER) in untouched


def test_after_a_restore_that_failed_the_entry_is_as_before_and_the_leaf_can_be_left(cluster: ClusterOfPeers) -> None:
    before = without(entries(cluster), cluster, machine=False)
    play = Script(
        failures={MACHINE: [(Mode.RESTORE, 21)]}, saved={MACHINE: saved(cluster)}, held={(MACHINE, Mode.RESTORE)}
    )
    with serving(cluster), cluster.peer(play) as peer:
        edit(cluster, "restore-small-files")
        go_on_from_small_files(cluster)
        cluster.wait_for("the restore is asked for", lambda: mode(cluster) == ("restore", "0"))
        assert without(entries(cluster), cluster, machine=False) != before
        play.held.clear()
        peer.wake()
        cluster.wait_for("it failed", lambda: mode(cluster) == ("restoring", "21"))
        cluster.wait_for("the entry is put back", lambda: "vmkeepEntryBefore" not in leaf(cluster))
        assert without(entries(cluster), cluster, machine=False) == before
        assert leaf(cluster)["vmkeepMessage"] == ["scripted failure of restore"]

        edit(cluster, "back-out-after-failure")
        cluster.wait_for("the leaf is tidy", lambda: not LEFT & leaf(cluster).keys())

    assert mode(cluster) == ("finished", "0")
    assert without(entries(cluster), cluster, machine=False) == before


def test_an_entry_that_reaches_outside_the_machine_ends_in_29_with_nothing_changed(cluster: ClusterOfPeers) -> None:
    before = without(entries(cluster, "*", "+"), cluster, machine=False)
    outside = saved(cluster) + f"\ndn: {cluster.tree.machine('db')}\nobjectClass: top\nsstMemory: 1\n"
    with serving(cluster), cluster.peer(Script(saved={MACHINE: outside})):
        edit(cluster, "restore-small-files")
        go_on_from_small_files(cluster)
        cluster.wait_for("it is refused", lambda: mode(cluster) == ("unretainedLargeFiles", "29"))

    [message] = leaf(cluster)["vmkeepMessage"]
    assert message.startswith(f"{MACHINE}: the LDIF's entry")
    assert "does not belong to the machine" in message
    assert "vmkeepEntryBefore" not in leaf(cluster)
    assert without(entries(cluster, "*", "+"), cluster, machine=False) == before


def test_an_entry_the_directory_refuses_halfway_is_put_back_and_can_be_mended(cluster: ClusterOfPeers) -> None:
    before = without(entries(cluster), cluster, machine=False)
    halfway = saved(cluster).replace("sstVCPU: 1", "sstVCPU: many")
    play = Script(saved={MACHINE: halfway})
    with serving(cluster), cluster.peer(play):
        edit(cluster, "restore-small-files")
        go_on_from_small_files(cluster)
        cluster.wait_for("it is refused", lambda: mode(cluster) == ("unretainedLargeFiles", "29"))
        assert without(entries(cluster), cluster, machine=False) == before
        assert "vmkeepEntryBefore" not in leaf(cluster)
        assert leaf(cluster)["vmkeepMessage"][0].startswith(f"{MACHINE}: the directory ")

        play.saved[MACHINE] = saved(cluster)  # mended
        edit(cluster, "restore-large-files-again", of="unretainedLargeFiles")
        cluster.wait_for("the restore is finished", lambda: mode(cluster) == ("finished", "0"))

    assert entries(cluster)[cluster.tree.machine(MACHINE)]["sstMemory"] == ["524288"]
    assert "vmkeepMessage" not in leaf(cluster)


def test_an_image_of_a_machine_on_another_node_is_not_written_over(cluster: ClusterOfPeers) -> None:
    before = without(entries(cluster, "*", "+"), cluster, machine=False)
    hers = devices(cluster, "db")
    cluster.set(cluster.tree.machine("db"), sstNode="n2")
    cluster.slapd.add(f"dn: {hers}\nobjectClass: organizationalUnit\nou: devices\n")
    cluster.slapd.add(disk(cluster, "vdx", "/var/virtualization/then/vdc.qcow2", machine="db"))
    with serving(cluster), cluster.peer(Script(saved={MACHINE: saved(cluster)})):
        edit(cluster, "restore-small-files")
        go_on_from_small_files(cluster)
        cluster.wait_for("it is refused", lambda: mode(cluster) == ("unretainedLargeFiles", "103"))
        [message] = leaf(cluster)["vmkeepMessage"]
        taken = f"{MACHINE}: the image /var/virtualization/then/vdc.qcow2 of vdc belongs to db (sstDisk=vdx,{hers})"
        assert message.startswith(taken)
        assert "vmkeepEntryBefore" not in leaf(cluster)
        assert without(entries(cluster, "*", "+"), cluster, machine=False) == before

        cluster.set(f"sstDisk=vdx,{hers}", sstSourceFile="/var/virtualization/then/VDC.qcow2")
        edit(cluster, "restore-large-files-again", of="unretainedLargeFiles")
        cluster.wait_for("the restore is finished", lambda: mode(cluster) == ("finished", "0"))


def test_backing_out_after_a_look_leaves_the_leaf_as_it_was(cluster: ClusterOfPeers) -> None:
    before = leaf(cluster)
    with serving(cluster), cluster.peer():
        edit(cluster, "restore-small-files")
        cluster.wait_for("small files are back", lambda: mode(cluster) == ("unretainedSmallFiles", "0"))
        edit(cluster, "back-out")
        cluster.wait_for("the leaf is tidy", lambda: not LEFT & leaf(cluster).keys())

    after = leaf(cluster)
    moved = {"sstProvisioningState", "sstProvisioningExecutionTime", "vmkeepEpoch"}
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} <= moved


def test_what_the_restore_said_goes_when_somebody_backs_out_in_another_way(cluster: ClusterOfPeers) -> None:
    before = leaf(cluster)
    said = {"vmkeepMessage": "nothing differs; to change what comes back, edit it", "vmkeepConflicts": "[]"}
    with serving(cluster):
        cluster.set(cluster.tree.leaf(MACHINE, TIMESTAMP), **said)
        cluster.wait_for("the leaf is tidy", lambda: not LEFT & leaf(cluster).keys())

    assert {name: values for name, values in leaf(cluster).items() if name != "vmkeepEpoch"} == before


def test_a_restore_no_agent_takes_up_is_taken_back(cluster: ClusterOfPeers) -> None:
    with serving(cluster, take_up_seconds=1):
        edit(cluster, "restore-small-files")
        cluster.wait_for("it is taken back", lambda: mode(cluster) == ("finished", "0"))

    assert "no agent took the restore up within 1 s" in leaf(cluster)["vmkeepMessage"][0]


def test_the_leaf_of_a_deleted_set_goes_and_the_others_stay(cluster: ClusterOfPeers) -> None:
    everything = entries(cluster, "*", "+")
    with serving(cluster), cluster.peer():
        edit(cluster, "delete-iteration")
        cluster.wait_for("the leaf is gone", lambda: len(cluster.leaves(MACHINE)) == 1)

    everything.pop(cluster.tree.leaf(MACHINE, TIMESTAMP))
    assert entries(cluster, "*", "+") == everything


def test_a_restore_under_another_name_leaves_no_leaf_that_passes_for_a_backup(cluster: ClusterOfPeers) -> None:
    with serving(cluster), cluster.peer():
        cluster.add_leaf("db", TIMESTAMP, "unretainedLargeFiles", "20260101T031500Z", vmkeepRestoreFrom=MACHINE)
        cluster.wait_for("the leaf is gone", lambda: len(cluster.leaves("db")) == 1)

    assert cluster.transcript("db")[-1] == "agent restored now 0"
    assert cluster.modes("db") == ["finished"]
    assert len(cluster.leaves(MACHINE)) == 2


@pytest.mark.parametrize(
    ("at", "state"),
    [("unretainSmallFiles", "0"), ("unretainingLargeFiles", "0"), ("unretainedSmallFiles", "20260101T031500Z")],
)
def test_no_backup_begins_beside_a_restore(cluster: ClusterOfPeers, at: str, state: str) -> None:
    cluster.set(cluster.tree.leaf(MACHINE, TIMESTAMP), sstProvisioningMode=at, sstProvisioningState=state)

    ended = cluster.run("--settings", str(cluster.controller_file()), "run", MACHINE)

    assert ended.code == 1, ended
    assert "return value 22" in ended.out
    assert len(cluster.leaves(MACHINE)) == 2


@pytest.mark.parametrize("at", ["restoring", "unretainingSmallFiles", "deleting", "unretainedLargeFiles"])
def test_a_restore_that_failed_stops_no_backup(cluster: ClusterOfPeers, at: str) -> None:
    failed = {"sstProvisioningMode": at, "sstProvisioningReturnValue": "21"}
    cluster.set(cluster.tree.leaf(MACHINE, TIMESTAMP), **failed)
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", MACHINE)

    assert ended.code == 0, ended
    assert mode(cluster) == (at, "21")
    assert len(cluster.leaves(MACHINE)) == 3


def test_a_restore_that_just_ended_stops_no_backup_and_passes_for_none(cluster: ClusterOfPeers) -> None:
    cluster.set(cluster.tree.leaf(MACHINE, TIMESTAMP), sstProvisioningMode="restored")
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", MACHINE)

    assert ended.code == 0, ended
    assert "taken on" not in ended.out
    assert cluster.modes(MACHINE) == ["finished"] * 3
