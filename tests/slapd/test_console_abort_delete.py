"""`vmkeep abort` and `vmkeep delete`, and restores in `vmkeep status`, on a real slapd."""

import pytest

from tests.slapd.cluster_of_peers import ClusterOfPeers
from tests.slapd.console_driver import NEW, OLD, at_a_terminal, leaf, mode, vmkeep
from tests.slapd.restore_counterpart import Counterpart, Play
from vmkeep.contract.modes import Mode

LATER = "20260104T000000Z"


def stand(cluster: ClusterOfPeers, machine: str, mode: str, state: str = LATER, rv: int = 0, **more: str) -> None:
    dn = cluster.tree.leaf(machine, NEW)
    values = {"sstProvisioningMode": mode, "sstProvisioningState": state, "sstProvisioningReturnValue": str(rv)}
    cluster.set(dn, **values, **more)


@pytest.mark.parametrize(
    ("mode_now", "state", "rv"),
    [
        ("unretainSmallFiles", "0", 0),
        ("unretainedSmallFiles", LATER, 0),
        ("unretainLargeFiles", "0", 0),
        ("unretainingLargeFiles", LATER, 37),
        ("unretainingSmallFiles", LATER, 18),
        ("unretainedLargeFiles", LATER, 0),
        ("restoring", LATER, 21),
    ],
)
def test_abort_makes_a_restore_that_stands_the_good_backup_it_was(
    cluster: ClusterOfPeers, machine: str, mode_now: str, state: str, rv: int
) -> None:
    before = leaf(cluster, machine)
    wishes = {"vmkeepKeepOld": "TRUE", "vmkeepRestoreDisk": "vda", "sstRestoreVMWithoutState": "TRUE"}
    stand(cluster, machine, mode_now, state, rv, vmkeepMessage="x", vmkeepConflicts="[]", **wishes)
    ended = vmkeep(cluster, "abort", machine)
    assert ended.code == 0, ended
    assert f"{machine}: backed out; {NEW} is the good backup it was" in ended.out
    after = leaf(cluster, machine)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {
        "sstProvisioningState"
    }


@pytest.mark.parametrize(
    ("mode_now", "rv", "said"),
    [
        ("unretainingSmallFiles", 37, "its set is missing, or files of it are"),
        ("unretainingSmallFiles", 38, "its set is damaged"),
        ("unretainingLargeFiles", 38, "its set is damaged"),
    ],
)
def test_abort_praises_no_backup_whose_set_was_found_wanting(
    cluster: ClusterOfPeers, machine: str, mode_now: str, rv: int, said: str
) -> None:
    stand(cluster, machine, mode_now, LATER, rv, vmkeepMessage="the manifest is missing")
    ended = vmkeep(cluster, "abort", machine)
    assert ended.code == 0, ended
    assert f"{machine}: backed out; {NEW} is finished again, but {said}" in ended.out
    assert "good backup" not in ended.out
    assert mode(cluster, machine) == "finished"


@pytest.mark.parametrize(
    ("mode_now", "rv", "restored_before", "stays"),
    [
        ("unretainingSmallFiles", 46, True, True),
        ("unretainSmallFiles", 0, True, True),
        ("unretainingSmallFiles", 46, False, False),
        ("unretainedSmallFiles", 0, True, False),
    ],
)
def test_abort_lets_go_only_what_this_restore_wished_to_keep(
    cluster: ClusterOfPeers, machine: str, mode_now: str, rv: int, restored_before: bool, stays: bool
) -> None:
    state = "0" if mode_now == "unretainSmallFiles" else LATER
    more = {"sstProvisioningExecutionTime": "restore: 1.500"} if restored_before else {}
    stand(cluster, machine, mode_now, state, rv, vmkeepKeepOld="TRUE", **more)
    assert vmkeep(cluster, "abort", machine).code == 0
    assert ("vmkeepKeepOld" in leaf(cluster, machine)) is stays


@pytest.mark.parametrize("mode_now", ["unretainingSmallFiles", "unretainingLargeFiles", "restoring", "restore"])
def test_abort_is_refused_while_an_agent_is_at_work(cluster: ClusterOfPeers, machine: str, mode_now: str) -> None:
    stand(cluster, machine, mode_now, "0")
    before = cluster.context_csn()
    ended = vmkeep(cluster, "abort", machine)
    assert (ended.code, cluster.context_csn()) == (1, before), ended
    assert f"{machine}: {NEW} stands at {mode_now}, which cannot be left now" in ended.err


def test_abort_never_makes_a_good_backup_of_a_leaf_that_was_none(cluster: ClusterOfPeers, machine: str) -> None:
    more = {"sstProvisioningReturnValue": "18", "vmkeepMessage": "it is no good backup"}
    cluster.add_leaf(machine, LATER, "unretainingSmallFiles", LATER, **more)
    ended = vmkeep(cluster, "abort", machine)
    assert ended.code == 0, ended
    assert f"{LATER} was no good backup, and ends with 18" in ended.out
    after = leaf(cluster, machine, LATER)
    assert (after["sstProvisioningMode"], after["sstProvisioningReturnValue"]) == (["finished"], ["18"])
    assert after["vmkeepMessage"] == ["it is no good backup"]


@pytest.mark.parametrize(("rv", "code"), [(18, 0), (13, 1)])
def test_abort_takes_a_deletion_back_only_when_nothing_was_removed(
    cluster: ClusterOfPeers, machine: str, rv: int, code: int
) -> None:
    stand(cluster, machine, "deleting", rv=rv)
    ended = vmkeep(cluster, "abort", machine)
    assert ended.code == code, ended
    assert mode(cluster, machine) == ("deleting" if code else "finished")
    assert ("part of its set may be gone" in ended.err) == bool(code)


def test_abort_keeps_the_entry_that_the_controller_has_to_put_back(cluster: ClusterOfPeers, machine: str) -> None:
    stand(cluster, machine, "unretainedLargeFiles", vmkeepEntry="dn: x", vmkeepEntryBefore="dn: y")
    assert vmkeep(cluster, "abort", machine).code == 0
    found = leaf(cluster, machine)
    assert ("vmkeepEntry" in found, found["vmkeepEntryBefore"]) == (False, ["dn: y"])


def test_abort_of_a_machine_without_a_restore_says_so(cluster: ClusterOfPeers, machine: str) -> None:
    ended = vmkeep(cluster, "abort", machine)
    assert ended.code == 1
    assert f"{machine}: no restore is under way; nothing was changed" in ended.err


def test_delete_follows_until_the_leaf_is_gone(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster):
        ended = vmkeep(cluster, "delete", machine, OLD, "--yes")
    assert ended.code == 0, ended
    assert f"{machine}: {OLD} is deleted" in ended.out
    assert [one["ou"] for one in cluster.leaves(machine)] == [[NEW]]


def test_delete_without_a_controller_says_who_removes_the_leaf(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster, Play(has_controller=False)):
        ended = vmkeep(cluster, "delete", machine, OLD, "--yes")
    assert ended.code == 0, ended
    assert f"{machine}: the files of {OLD} are deleted; a controller removes the leaf" in ended.out
    assert mode(cluster, machine, OLD) == "deleted"


def test_the_last_good_backup_goes_only_when_told(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster) as other:
        assert vmkeep(cluster, "delete", machine, OLD, "--yes").code == 0
        before = cluster.context_csn()
        refused = vmkeep(cluster, "delete", machine, NEW, "--yes")
        assert (refused.code, cluster.context_csn()) == (1, before), refused
        assert "it is the last good backup; say --last" in refused.err
        other.play.held.add(Mode.DELETE)
        process = cluster.start(
            *("--settings", str(cluster.settings_file("admin")), "delete", machine, NEW, "--yes", "--last"),
            program="vmkeep",
        )
        cluster.wait_for("it is asked for", lambda: mode(cluster, machine) == "delete")
        assert leaf(cluster, machine)["vmkeepDeleteLast"] == ["TRUE"]
        other.play.held.clear()
        other.wake()
        assert cluster.ended(process).code == 0
    assert cluster.leaves(machine) == []


@pytest.mark.parametrize(("rv", "mode_after"), [(22, "finished"), (18, "finished"), (13, "deleting")])
def test_a_deletion_that_was_refused_leaves_a_good_backup_and_one_that_broke_does_not(
    cluster: ClusterOfPeers, machine: str, rv: int, mode_after: str
) -> None:
    with Counterpart(cluster, Play(failures={Mode.DELETE: rv})):
        ended = vmkeep(cluster, "delete", machine, OLD, "--yes")
    assert ended.code == 1, ended
    assert f"{OLD} failed at deleting: {rv}, " in ended.out
    assert mode(cluster, machine, OLD) == mode_after


def test_a_failed_leaf_can_be_deleted(cluster: ClusterOfPeers, machine: str) -> None:
    cluster.add_leaf(machine, LATER, "retaining", LATER, sstProvisioningReturnValue="8")
    with Counterpart(cluster):
        ended = vmkeep(cluster, "delete", machine, LATER, "--yes")
    assert ended.code == 0, ended
    assert LATER not in [one["ou"][0] for one in cluster.leaves(machine)]


@pytest.mark.parametrize(
    ("mode_now", "rv", "said"),
    [
        ("unretainedSmallFiles", 0, "a restore uses it"),
        ("retaining", 0, "it is at work"),
        ("merging", 11, "may still need its files in retain"),
    ],
)
def test_a_backup_in_use_is_not_deleted_and_nothing_is_written(
    cluster: ClusterOfPeers, machine: str, mode_now: str, rv: int, said: str
) -> None:
    stand(cluster, machine, mode_now, LATER if rv or mode_now.endswith("ed") else "0", rv)
    before = cluster.context_csn()
    ended = vmkeep(cluster, "delete", machine, NEW, "--yes")
    assert (ended.code, cluster.context_csn()) == (1, before), ended
    assert said in ended.err


def test_delete_asks_and_takes_silence_for_no(cluster: ClusterOfPeers, machine: str) -> None:
    nobody = vmkeep(cluster, "delete", machine, OLD)
    assert (nobody.code, "say --yes" in nobody.out) == (3, True), nobody
    code, shown = at_a_terminal(cluster, "\n", "delete", machine, OLD)
    assert (code, "nothing was deleted" in shown) == (3, True), shown
    assert mode(cluster, machine, OLD) == "finished"


@pytest.mark.parametrize(
    ("mode_now", "state", "rv", "standing", "remark"),
    [
        ("unretainedSmallFiles", LATER, 0, "waits", f"restore of {NEW} waits for a decision: vmkeep restore"),
        ("restoring", "0", 0, "running", f"restore of {NEW}: restoring 42 %"),
        ("restoring", LATER, 21, "failed", f"restore of {NEW} restoring: 21 cannot restore machine"),
    ],
)
def test_status_tells_how_a_restore_stands_and_keeps_its_set_as_last_success(
    cluster: ClusterOfPeers, machine: str, mode_now: str, state: str, rv: int, standing: str, remark: str
) -> None:
    stand(cluster, machine, mode_now, state, rv, vmkeepPercent="42")
    ended = vmkeep(cluster, "status", machine)
    line = " ".join(ended.out.splitlines()[1].split())
    assert line.startswith(f"{machine} n1 {standing} {NEW} "), line
    assert remark in line
    assert ended.code == (3 if rv else 0)
