"""`vmkeep-controller run` on a real slapd, with scripted peers in place of the agents."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.slapd.cluster_of_peers import ClusterOfPeers, Script, wait_a_second
from vmkeep.contract.modes import Mode

pytestmark = pytest.mark.usefixtures("emptied")

TWELVE_STEPS = """\
controller initialize now 0
controller initialized now 0
controller snapshot 0 0
agent snapshotting 0 0
agent snapshotted now 0
controller merge 0 0
agent merging 0 0
agent merged now 0
controller retain 0 0
agent retaining 0 0
agent retained now 0
controller finished now 0
""".splitlines()


def test_a_run_walks_the_twelve_steps_in_order(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "web")
    assert ended.code == 0, ended
    assert cluster.transcript("web") == TWELVE_STEPS
    assert re.match(r"web: finished, downtime 0\.250 s, duration \d+ s\n\d{8}T\d{6}Z: 1 of 1 machines fin", ended.out)
    assert ended.err == ""


def test_all_machines_of_a_run_share_their_timestamp_and_settings_may_follow_the_command(
    cluster: ClusterOfPeers,
) -> None:
    names = [f"m{number}" for number in range(5)]
    cluster.add_machines(names)
    with cluster.peer():
        ended = cluster.run("run", "--settings", str(cluster.controller_file()), "--all")
    assert ended.code == 0, ended
    assert len({leaf["ou"][0] for name in names for leaf in cluster.leaves(name)}) == 1
    assert "5 of 5 machines finished" in ended.out


def test_no_machine_is_merged_before_all_of_its_run_are_snapshotted(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["fast", "slow"])
    play = Script(held={("slow", Mode.SNAPSHOT)})
    with cluster.peer(play) as peer:
        process = cluster.start("--settings", str(cluster.controller_file()), "run", "--all")
        cluster.wait_for("fast is snapshotted", lambda: cluster.modes("fast") == ["snapshotted"])
        cluster.wait_for("slow is asked", lambda: cluster.modes("slow") == ["snapshot"])
        assert cluster.modes("fast") == ["snapshotted"]
        play.held.clear()
        peer.wake()
        assert cluster.ended(process).code == 0
    fast, slow = (cluster.transcript(name) for name in ("fast", "slow"))
    assert fast == slow == TWELVE_STEPS


def test_after_the_deadline_a_slow_snapshot_holds_nobody_up(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["fast", "slow"])
    settings = cluster.controller_file(snapshot_deadline_seconds=1)
    with cluster.peer(Script(held={("slow", Mode.SNAPSHOT)})):
        ended = cluster.run("--settings", str(settings), "run", "--all", "--timeout", "3")
    assert ended.code == 3, ended
    assert cluster.modes("fast") == ["finished"]
    assert "slow: still snapshot, leaf" in ended.out
    assert "1 of 2 machines finished" in ended.out
    assert "1 still running" in ended.out


def test_a_failed_snapshot_is_neither_merged_nor_retained_and_holds_nobody_up(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["bad", "good"])
    with cluster.peer(Script(failures={"bad": [(Mode.SNAPSHOT, 47)]})):
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "--all")
    assert ended.code == 3, ended
    assert cluster.transcript("bad")[-1] == "agent snapshotting 0 0"
    [leaf] = cluster.leaves("bad")
    assert leaf["sstProvisioningReturnValue"] == ["47"]
    assert cluster.modes("good") == ["finished"]
    assert "bad: failed in snapshotting, return value 47 (not enough disk space): scripted failure" in ended.out


def test_a_run_of_failures_alone_exits_with_1(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["bad"])
    with cluster.peer(Script(failures={"bad": [(Mode.SNAPSHOT, 33)]})):
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "bad", "nosuch", "../evil")
    assert ended.code == 1, ended
    assert "nosuch: failed, return value 23 (cannot find machine)" in ended.out
    assert "../evil: failed, return value 101 (machine name not allowed)" in ended.out
    assert "0 of 3 machines finished, 3 failed" in ended.out


def test_a_failed_merge_is_asked_again_and_then_finishes(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    settings = cluster.controller_file(back_off_seconds=0.1)
    with cluster.peer(Script(failures={"web": [(Mode.MERGE, 11), (Mode.RETAIN, 7), (Mode.RETAIN, 7)]})):
        ended = cluster.run("--settings", str(settings), "run", "web")
    assert ended.code == 0, ended
    steps = [line.split()[1] for line in cluster.transcript("web")]
    assert steps.count("merge") == 2
    assert steps.count("retain") == 3
    [leaf] = cluster.leaves("web")
    assert leaf["sstProvisioningReturnValue"] == ["0"]
    assert "vmkeepMessage" not in leaf


def test_asking_again_ends_at_the_bound_and_the_leaf_stays_failed(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    settings = cluster.controller_file(back_off_seconds=0.1, attempts=1)
    with cluster.peer(Script(failures={"web": [(Mode.MERGE, 11)] * 9})):
        ended = cluster.run("--settings", str(settings), "run", "web")
    assert ended.code == 1, ended
    [leaf] = cluster.leaves("web")
    assert leaf["sstProvisioningMode"] == ["merging"]
    assert leaf["sstProvisioningReturnValue"] == ["11"]
    assert leaf["vmkeepAttempts"] == ["1"]


def test_a_machine_with_a_leaf_in_flight_gets_no_second_one_and_the_old_one_is_finished(
    cluster: ClusterOfPeers,
) -> None:
    cluster.add_machines(["busy", "free"])
    cluster.add_leaf("busy", "20260101T000000Z", "merged", "20260101T000500Z")
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "--all")
    assert ended.code == 0, ended
    assert [leaf["ou"] for leaf in cluster.leaves("busy")] == [["20260101T000000Z"]]
    assert cluster.modes("busy") == ["finished"]
    assert "the leaf 20260101T000000Z was in flight (merged) and was taken on instead of a new one" in ended.out


def test_a_machine_in_the_middle_of_a_restore_is_left_alone_and_said_so(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    cluster.add_leaf("web", "20260101T000000Z", "unretainedSmallFiles", "20260101T000500Z")
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "web")
    assert ended.code == 1, ended
    assert "return value 22" in ended.out
    assert "unretainedSmallFiles" in ended.out
    assert cluster.modes("web") == ["unretainedSmallFiles"]


def test_an_excluded_machine_is_left_out_and_a_deleted_backup_subtree_is_created_anew(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["out", "in"])
    cluster.set(cluster.tree.machine_plan("out"), sstBackupExcludeFromBackup="TRUE")
    run = ("--settings", str(cluster.controller_file()), "run", "--all")
    with cluster.peer():
        ended = cluster.run(*run)
        assert ended.code == 0, ended
        assert "out: left out, sstBackupExcludeFromBackup is TRUE" in ended.out
        assert cluster.leaves("out") == []
        cluster.slapd.delete(cluster.tree.machine_plan("out"))
        wait_a_second()
        ended = cluster.run(*run)
    assert ended.code == 0, ended
    assert cluster.modes("out") == ["finished"]
    [plan] = cluster.slapd.search(cluster.tree.machine_plan("out"), "(objectClass=*)", "base")
    assert "sstVirtualizationBackupObjectClass" in plan["objectClass"]


def test_a_machine_whose_name_cannot_be_a_file_name_gets_no_leaf_and_stops_nobody(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["good", "b..d"])
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "--all")
    assert ended.code == 3, ended
    assert "b..d: failed, return value 101" in ended.out
    assert cluster.leaves("b..d") == []
    assert cluster.modes("good") == ["finished"]


def test_all_without_any_machine_says_so_and_exits_with_1(cluster: ClusterOfPeers) -> None:
    ended = cluster.run("--settings", str(cluster.controller_file()), "run", "--all")
    assert ended.code == 1
    assert "there is no machine below ou=virtual machines" in ended.out


@pytest.mark.parametrize("arguments", [["run"], ["run", "--all", "web"], ["run", "--nonsense"], ["walk"]])
def test_wrong_usage_exits_with_2(cluster: ClusterOfPeers, arguments: list[str]) -> None:
    assert cluster.run("--settings", str(cluster.controller_file()), *arguments).code == 2


def test_unusable_settings_exit_with_2_and_one_sentence_a_key(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('attempts = -1\n[directory]\nuri = "ldap://x"\nsuffix = "dc=x"\n')
    ended = cluster.run("--settings", str(tmp_path / "bad.toml"), "run", "--all")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "attempts is -1" in ended.err


def test_a_snapshot_nobody_takes_up_is_ended_with_100(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    settings = cluster.controller_file(take_up_seconds=1)
    ended = cluster.run("--settings", str(settings), "run", "web")
    assert ended.code == 1, ended
    assert cluster.transcript("web")[-1] == "controller finished now 100"
    assert "return value 100 (no agent took the work up in time)" in ended.out
    assert "is the agent of its node running" in ended.out


def test_an_old_leaf_that_is_asked_just_now_is_given_its_time(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web", "other"])
    cluster.add_leaf("web", "20200101T000000Z", "snapshot", "0")
    with cluster.peer(Script(held={("web", Mode.SNAPSHOT)})):
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "--all", "--timeout", "2")
    assert ended.code == 3, ended
    assert cluster.modes("web") == ["snapshot"]


def test_two_controllers_at_once_double_nothing(cluster: ClusterOfPeers) -> None:
    names = [f"m{number}" for number in range(8)]
    cluster.add_machines(names)
    settings = str(cluster.controller_file())
    with cluster.peer():
        processes = [cluster.start("--settings", settings, "run", "--all") for _ in range(3)]
        ended = [cluster.ended(process) for process in processes]
    assert [one.code for one in ended] == [0, 0, 0], ended
    for name in names:
        # One that starts after another has ended may add a leaf of its own; two in flight there must never be.
        transcript = [line for line in cluster.transcript(name) if line != "controller initialize now 0"]
        assert transcript == TWELVE_STEPS[1:] * len(cluster.leaves(name)), (name, ended)


def test_an_interrupted_run_exits_with_130_and_serve_finishes_its_leaves(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    play = Script(held={("web", Mode.MERGE)})
    settings = str(cluster.controller_file())
    with cluster.peer(play) as peer:
        process = cluster.start("--settings", settings, "run", "web")
        cluster.wait_for("web waits for its merge", lambda: cluster.modes("web") == ["merge"])
        process.send_signal(signal.SIGINT)
        ended = cluster.ended(process)
        assert ended.code == 130, ended
        assert "web: still merge" in ended.out
        serving = cluster.start("--settings", settings, "serve")
        play.held.clear()
        peer.wake()
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
        serving.send_signal(signal.SIGTERM)
        assert cluster.ended(serving).code == 0


def test_a_controller_that_is_killed_in_the_middle_is_followed_by_serve(cluster: ClusterOfPeers) -> None:
    names = ["a", "b", "c"]
    cluster.add_machines(names)
    play = Script(held={("b", Mode.SNAPSHOT)})
    settings = str(cluster.controller_file())
    with cluster.peer(play) as peer:
        process = cluster.start("--settings", settings, "run", "--all")
        cluster.wait_for("a waits at the barrier", lambda: cluster.modes("a") == ["snapshotted"])
        process.send_signal(signal.SIGKILL)
        cluster.ended(process)
        serving = cluster.start("--settings", settings, "serve")
        play.held.clear()
        peer.wake()
        cluster.wait_for("all are finished", lambda: all(cluster.modes(name) == ["finished"] for name in names))
        serving.send_signal(signal.SIGTERM)
        cluster.ended(serving)
    for name in names:
        assert cluster.transcript(name) == TWELVE_STEPS


def test_leaves_left_in_initialize_by_a_killed_run_are_set_going_by_serve(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    cluster.add_leaf("web", "20260101T000000Z", "initialize", "20260101T000000Z")
    with cluster.peer():
        serving = cluster.start("--settings", str(cluster.controller_file()), "serve")
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
        serving.send_signal(signal.SIGTERM)
        assert cluster.ended(serving).code == 0


def test_a_directory_that_goes_away_during_a_run_only_delays_it(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    play = Script(held={("web", Mode.MERGE)})
    with cluster.peer(play) as peer:
        process = cluster.start("--settings", str(cluster.controller_file()), "run", "web")
        cluster.wait_for("web waits for its merge", lambda: cluster.modes("web") == ["merge"])
        cluster.slapd.kill()
        play.held.clear()
        cluster.slapd.start()
        peer.wake()
        ended = cluster.ended(process)
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err
    assert cluster.modes("web") == ["finished"]


def test_a_foreign_mode_is_left_alone_and_stops_nobody(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["odd", "web"])
    cluster.add_leaf("odd", "20260101T000000Z", "teleport", "0")
    cluster.add_leaf("odd", "99991231T235959Z", "snapshotted", "yesterday")
    with cluster.peer():
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "web")
    assert ended.code == 0, ended
    assert sorted(cluster.modes("odd")) == ["snapshotted", "teleport"]


def test_serve_as_a_daemon_keeps_a_pidfile_logs_to_a_file_and_ends_on_sigterm(
    cluster: ClusterOfPeers, tmp_path: Path
) -> None:
    cluster.add_machines(["web"])
    cluster.add_leaf("web", "20260101T000000Z", "merged", "20260101T000000Z")
    pidfile, log = tmp_path / "pid", tmp_path / "log"
    settings = cluster.controller_file()
    settings.write_text(settings.read_text() + f'[logs]\nform = "json"\nfile = "{log}"\n')
    with cluster.peer():
        started = cluster.run("--settings", str(settings), "serve", "--daemon", "--pidfile", str(pidfile))
        assert started.code == 0, started
        cluster.wait_for("web is finished", lambda: cluster.modes("web") == ["finished"])
    os.kill(int(pidfile.read_text()), signal.SIGTERM)
    cluster.wait_for("the daemon has ended", lambda: not pidfile.exists())
    said = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    finished, given_back, stopped = said[-3:]
    assert (finished, stopped) == ("web: 20260101T000000Z retained → finished", "stopped")
    assert given_back.startswith("gave the lease back, epoch ")
