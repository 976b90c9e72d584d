"""`vmkeep restore`, on a real slapd whose agent and controller are played by plain claims."""

import signal
import subprocess

import pytest

from lab.slapd import REPOSITORY
from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers
from tests.slapd.console_driver import NEW, OLD, arguments, at_a_terminal, leaf, mode, vmkeep
from tests.slapd.restore_counterpart import WHERE, Counterpart, Play
from vmkeep.contract.leaf import NOT_PUT_BACK
from vmkeep.contract.modes import Mode


def test_the_newest_good_backup_is_restored_and_the_admin_writes_two_modes(
    cluster: ClusterOfPeers, machine: str
) -> None:
    with Counterpart(cluster):
        ended = vmkeep(cluster, "restore", machine, "--yes")
    assert ended.code == 0, ended
    assert f"{machine}: restored as it was at {NEW}" in ended.out
    walk = [line for line in cluster.transcript(machine) if not line.endswith("finished now 0")]
    assert walk == [
        "cn=admin unretainSmallFiles 0 0",
        "agent unretainingSmallFiles 0 0",
        "agent unretainedSmallFiles now 0",
        "cn=admin unretainLargeFiles 0 0",
        "agent unretainingLargeFiles 0 0",
        "agent unretainedLargeFiles now 0",
        "controller restore 0 0",
        "agent restoring 0 0",
        "agent restored now 0",
    ]
    assert mode(cluster, machine, OLD) == "finished"


def test_conflicts_are_shown_as_text_with_the_place_of_the_files(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster):
        ended = vmkeep(cluster, "restore", machine, "--yes")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "disk path vda /old/disk.qcow2 /new/disk.qcow2" in lines
    assert "cpu or memory [bold]memory 1 GiB 2 GiB" in lines
    assert WHERE in lines


def test_without_a_terminal_it_stops_at_the_question_and_the_next_call_goes_on(
    cluster: ClusterOfPeers, machine: str
) -> None:
    with Counterpart(cluster):
        stopped = vmkeep(cluster, "restore", machine, "--at", OLD)
        assert stopped.code == 3, stopped
        assert f"`vmkeep restore {machine} --yes` goes on, `vmkeep abort {machine}` backs out" in stopped.out
        assert mode(cluster, machine, OLD) == "unretainedSmallFiles"
        other = vmkeep(cluster, "restore", machine, "--at", NEW, "--yes")
        assert (other.code, mode(cluster, machine, NEW)) == (1, "finished"), other
        assert f"a restore of {OLD} is under way" in other.err
        ended = vmkeep(cluster, "restore", machine, "--yes")
    assert ended.code == 0, ended
    assert f"going on with the restore of {OLD}, which stands at unretainedSmallFiles" in ended.out
    assert f"restored as it was at {OLD}" in ended.out


def test_diff_shows_and_leaves_the_leaf_as_it_was(cluster: ClusterOfPeers, machine: str) -> None:
    before = leaf(cluster, machine)
    with Counterpart(cluster):
        ended = vmkeep(cluster, "restore", machine, "--diff", "--keep-old", "--without-state")
    assert ended.code == 3, ended
    assert "/new/disk.qcow2" in ended.out
    after = leaf(cluster, machine)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"sstProvisioningState", "sstProvisioningExecutionTime"}


def test_declining_backs_out(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster):
        code, shown = at_a_terminal(cluster, "n\n", "restore", machine)
    assert code == 3, shown
    assert f"Restore {machine} as it was at {NEW}? [y/N]" in shown
    assert "backed out" in shown
    assert mode(cluster, machine) == "finished"
    assert "vmkeepConflicts" not in leaf(cluster, machine)


def test_agreeing_at_the_terminal_restores(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster):
        code, shown = at_a_terminal(cluster, "y\n", "restore", machine)
    assert code == 0, shown
    assert f"{machine}: restored as it was at {NEW}" in shown


def test_interrupted_it_says_how_to_go_on(cluster: ClusterOfPeers, machine: str) -> None:
    process = cluster.start(*arguments(cluster, "restore", machine), program="vmkeep")
    cluster.wait_for("the first step is asked for", lambda: mode(cluster, machine) == "unretainSmallFiles")
    process.send_signal(signal.SIGINT)
    ended = cluster.ended(process)
    assert ended.code == 3, ended
    assert f"go on with `vmkeep restore {machine}`, or back out with `vmkeep abort {machine}`" in ended.out


def test_time_that_is_up_leaves_the_restore_waiting(cluster: ClusterOfPeers, machine: str) -> None:
    ended = vmkeep(cluster, "restore", machine, "--timeout", "0.5")
    assert ended.code == 3, ended
    assert f"{machine}: not done within 0.5 s" in ended.out
    assert mode(cluster, machine) == "unretainSmallFiles"


def test_what_is_wished_stands_on_the_leaf_with_the_first_mode(cluster: ClusterOfPeers, machine: str) -> None:
    wished = ("--disk", "vda", "--disk", "vdb", "--without-state", "--keep-old", "--timeout", "0.3")
    vmkeep(cluster, "restore", machine, *wished)
    found = leaf(cluster, machine)
    assert sorted(found["vmkeepRestoreDisk"]) == ["vda", "vdb"]
    assert (found["sstRestoreVMWithoutState"], found["vmkeepKeepOld"]) == (["TRUE"], ["TRUE"])


KEPT = "what was replaced is kept in /retain/x/before"


def test_what_an_earlier_restore_kept_is_not_lost_to_another(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster):
        assert vmkeep(cluster, "restore", machine, "--keep-old", "--yes").code == 0
    assert leaf(cluster, machine)["vmkeepKeepOld"] == ["TRUE"]
    cluster.set(cluster.tree.leaf(machine, NEW), vmkeepMessage=KEPT)
    before = cluster.context_csn()
    for more in ([], ["--diff"], ["--keep-old"], ["--at", NEW]):
        ended = vmkeep(cluster, "restore", machine, "--yes", *more)
        assert (ended.code, cluster.context_csn()) == (1, before), ended
        assert f"{machine}: vmkeepKeepOld keeps what an earlier restore of {NEW} replaced" in ended.err
        assert KEPT in ended.err
        assert "ldif/edits/drop-old.ldif" in ended.err
    cluster.slapd.modify(_edit("drop-old", machine))
    with Counterpart(cluster):
        assert vmkeep(cluster, "restore", machine, "--yes").code == 0


def test_a_wish_to_keep_that_stands_before_the_first_restore_is_heeded(cluster: ClusterOfPeers, machine: str) -> None:
    cluster.slapd.modify(_edit("keep-old", machine))
    with Counterpart(cluster):
        ended = vmkeep(cluster, "restore", machine, "--yes")
    assert ended.code == 0, ended
    assert leaf(cluster, machine)["vmkeepKeepOld"] == ["TRUE"]


def test_a_wish_that_comes_after_the_look_is_said_before_the_question(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster):
        assert vmkeep(cluster, "restore", machine).code == 3
        code, shown = at_a_terminal(cluster, "n\n", "restore", machine, "--without-state")
    assert code == 3, shown
    said, question = shown.index("started without its saved memory"), shown.index(f"Restore {machine} as it was")
    assert said < question


def _edit(name: str, machine: str) -> str:
    text = (REPOSITORY / f"ldif/edits/{name}.ldif").read_text()
    return text.replace("machine-01", machine).replace("20260101T030000Z", NEW)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--at", "20250101T000000Z"], f"the backup 20250101T000000Z is not there; good ones: {NEW}, {OLD}"),
        (["--at", "20260104T000000Z"], "the backup 20260104T000000Z is no good backup (merging, 11)"),
        (["--disk", "../etc"], "the disk target '../etc' is not allowed"),
    ],
)
def test_what_cannot_be_restored_is_refused_and_nothing_is_written(
    cluster: ClusterOfPeers, machine: str, more: list[str], said: str
) -> None:
    cluster.add_leaf(machine, "20260104T000000Z", "merging", "20260104T000001Z", sstProvisioningReturnValue="11")
    before = cluster.context_csn()
    ended = vmkeep(cluster, "restore", machine, *more)
    assert (ended.code, cluster.context_csn()) == (1, before), ended
    assert said in ended.err


def test_a_machine_with_a_leaf_in_flight_is_refused_and_nothing_is_written(
    cluster: ClusterOfPeers, machine: str
) -> None:
    cluster.add_leaf(machine, "20260104T000000Z", "retaining", "0", sstProvisioningReturnValue="0")
    before = cluster.context_csn()
    ended = vmkeep(cluster, "restore", machine, "--yes")
    assert (ended.code, cluster.context_csn()) == (1, before), ended
    assert f"{machine}: 20260104T000000Z is at work (retaining)" in ended.err


def test_an_unknown_machine_points_to_the_sets(cluster: ClusterOfPeers) -> None:
    ended = vmkeep(cluster, "restore", "nosuch", "--yes")
    assert ended.code == 1
    assert "nosuch: there is no machine of this name" in ended.err
    assert "vmkeep rebuild-catalogue" in ended.err


def test_a_failed_step_is_told_with_its_code_and_can_be_tried_again(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster, Play(failures={Mode.UNRETAIN_LARGE_FILES: 38})):
        failed = vmkeep(cluster, "restore", machine, "--yes")
        assert failed.code == 1, failed
        assert f"{NEW} failed at unretainingLargeFiles: 38, corrupt disk image: scripted failure" in failed.out
        assert "nothing of the machine was touched" in failed.out
        ended = vmkeep(cluster, "restore", machine, "--yes")
    assert ended.code == 0, ended


def test_a_restore_that_failed_is_told_and_not_begun_again(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster, Play(failures={Mode.RESTORE: 21})):
        for _ in range(2):
            failed = vmkeep(cluster, "restore", machine, "--yes")
            assert failed.code == 1, failed
            assert f"{NEW} failed at restoring: 21, cannot restore machine: scripted failure" in failed.out
            assert f"{machine}: was put back as it was; `vmkeep abort {machine}` ends this restore" in failed.out
    assert mode(cluster, machine) == "restoring"


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        (Mode.RESTORE, "is NOT as it was; first do what is left to do; `vmkeep abort"),
        (Mode.UNRETAIN_LARGE_FILES, "its entry is NOT as it was; go on with"),
    ],
)
def test_what_could_not_be_put_back_is_never_said_to_be_as_it_was(
    cluster: ClusterOfPeers, machine: str, failing: Mode, told: str
) -> None:
    with Counterpart(cluster, Play(failures={failing: 21}, said=f"; and it {NOT_PUT_BACK} as it was (put vda: stuck)")):
        failed = vmkeep(cluster, "restore", machine, "--yes")
    assert failed.code == 1, failed
    assert "could not be put back as it was (put vda: stuck)" in failed.out
    assert f"{machine}: {told}" in failed.out
    assert "was put back" not in failed.out
    assert "nothing of the machine was touched" not in failed.out


def test_without_a_controller_it_says_so_and_plain_ldapmodify_goes_on(cluster: ClusterOfPeers, machine: str) -> None:
    with Counterpart(cluster, Play(has_controller=False)):
        process = cluster.start(*arguments(cluster, "restore", machine, "--yes"), program="vmkeep")
        assert process.stdout is not None
        for line in process.stdout:
            if "no controller seems to run, which would go on from unretainedLargeFiles" in line:
                break
        assert "ldif/edits/restore.ldif" in line
        cluster.slapd.modify(_edit("restore", machine))
        rest = process.stdout.read()
        assert process.wait(LIMIT) == 0, rest
    assert "the leaf stays at restored until one does" in rest
    assert f"{machine}: restored as it was at {NEW}" in rest


def test_somebody_else_backing_out_ends_it(cluster: ClusterOfPeers, machine: str) -> None:
    process = cluster.start(*arguments(cluster, "restore", machine), program="vmkeep")
    cluster.wait_for("the first step is asked for", lambda: mode(cluster, machine) == "unretainSmallFiles")
    assert vmkeep(cluster, "abort", machine).code == 0
    ended = cluster.ended(process)
    assert ended.code == 3, ended
    assert f"somebody else moved the leaf {NEW}; it stands at finished" in ended.out


def test_a_controller_that_gives_up_waiting_for_the_agent_is_quoted(cluster: ClusterOfPeers, machine: str) -> None:
    process = cluster.start(*arguments(cluster, "restore", machine), program="vmkeep")
    cluster.wait_for("the first step is asked for", lambda: mode(cluster, machine) == "unretainSmallFiles")
    given_up = {"sstProvisioningMode": "finished", "sstProvisioningState": "20260104T000000Z"}
    cluster.set(cluster.tree.leaf(machine, NEW), **given_up, vmkeepMessage="no agent took the restore up")
    ended = cluster.ended(process)
    assert ended.code == 3, ended
    assert "it stands at finished with 0: no agent took the restore up" in ended.out


def test_a_directory_that_goes_away_is_waited_for(cluster: ClusterOfPeers, machine: str) -> None:
    process = cluster.start(*arguments(cluster, "restore", machine, "--yes"), program="vmkeep")
    cluster.wait_for("the first step is asked for", lambda: mode(cluster, machine) == "unretainSmallFiles")
    cluster.slapd.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    cluster.slapd.start()
    with Counterpart(cluster):
        ended = cluster.ended(process)
    assert ended.code == 0, ended
