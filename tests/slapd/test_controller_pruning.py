"""Backups go by the plan on a real slapd: asked for by `serve` and `run`, deleted by a played agent, leaves last."""

import signal
import subprocess
import sys

import pytest

from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers, Script
from vmkeep.contract.modes import Mode

pytestmark = pytest.mark.usefixtures("emptied")

NIGHTS = [f"2026010{day}T030000Z" for day in range(1, 6)]
DELETED = ["controller delete 0 0", "agent deleting 0 0", "agent deleted now 0"]


def add_kept(cluster: ClusterOfPeers, name: str, keep: str | None, nights: list[str] = NIGHTS) -> None:
    """A machine with good backups of some nights."""
    cluster.add_machines([name])
    if keep:
        dn = cluster.tree.machine_plan(name)
        keeping = f"add: objectClass\nobjectClass: vmkeepPlan\n-\nadd: vmkeepKeep\nvmkeepKeep: {keep}\n"
        cluster.slapd.modify(f"dn: {dn}\nchangetype: modify\n{keeping}")
    for night in nights:
        add_good(cluster, name, night)


def add_good(cluster: ClusterOfPeers, name: str, night: str, **more: str) -> None:
    said = {"sstProvisioningReturnValue": "0", "vmkeepManifestDigest": "blake3:0", **more}
    cluster.add_leaf(name, night, "finished", "20260110T000000Z", **said)


def nights(cluster: ClusterOfPeers, name: str) -> list[str]:
    return [leaf["ou"][0] for leaf in cluster.leaves(name)]


def test_serve_asks_at_its_start_for_what_the_plans_keep_no_longer_and_removes_the_leaves_last(
    cluster: ClusterOfPeers,
) -> None:
    add_kept(cluster, "web", "last=2")
    add_kept(cluster, "old", None)
    cluster.set(cluster.tree.machine_plan("old"), sstBackupNumberOfIterations="3")
    add_kept(cluster, "odd", "last=few")
    with cluster.peer():
        serving = cluster.start("--settings", str(cluster.controller_file()), "serve")
        cluster.wait_for("two are left of web", lambda: nights(cluster, "web") == NIGHTS[3:])
        cluster.wait_for("three are left of old", lambda: nights(cluster, "old") == NIGHTS[2:])
        serving.send_signal(signal.SIGTERM)
        ended = cluster.ended(serving)
    assert ended.code == 0, ended
    walked = [line for line in cluster.transcript("web") if " finished " not in line]
    assert sorted(walked) == sorted(DELETED * 3)
    assert nights(cluster, "odd") == NIGHTS
    assert "odd: no old backup of it goes: vmkeepKeep is 'last=few'" in ended.err
    assert f"web: {NIGHTS[0]} is to be deleted (good, and no rule keeps it)" in ended.err


def test_what_is_held_stays_and_goes_once_it_is_released(cluster: ClusterOfPeers) -> None:
    add_kept(cluster, "web", "last=1", NIGHTS[1:])
    add_good(cluster, "web", NIGHTS[0], vmkeepHold="until the audit is over")
    settings = str(cluster.controller_file())
    with cluster.peer():
        serving = cluster.start("--settings", settings, "serve")
        cluster.wait_for("two are left", lambda: nights(cluster, "web") == [NIGHTS[0], NIGHTS[4]])
        serving.send_signal(signal.SIGTERM)
        cluster.ended(serving)
        released = cluster.run(
            *("--settings", str(cluster.settings_file("admin")), "release", "web", NIGHTS[0]), program="vmkeep"
        )
        assert released.code == 0, released
        serving = cluster.start("--settings", settings, "serve")
        cluster.wait_for("one is left", lambda: nights(cluster, "web") == NIGHTS[4:])
        serving.send_signal(signal.SIGTERM)
        cluster.ended(serving)


def test_a_deletion_that_the_agent_refuses_leaves_the_good_backup_it_was(cluster: ClusterOfPeers) -> None:
    add_kept(cluster, "web", "last=1", NIGHTS[:2])
    with cluster.peer(Script(failures={"web": [(Mode.DELETE, 22)]})):
        serving = cluster.start("--settings", str(cluster.controller_file()), "serve")
        cluster.wait_for("it is told", lambda: "vmkeepMessage" in cluster.leaves("web")[0])
        cluster.wait_for("it is good again", lambda: cluster.modes("web") == ["finished"] * 2)
        serving.send_signal(signal.SIGTERM)
        assert cluster.ended(serving).code == 0
    leaf = cluster.leaves("web")[0]
    assert leaf["sstProvisioningReturnValue"] == ["0"]
    assert leaf["vmkeepMessage"] == ["not deleted: scripted failure of delete"]
    assert "vmkeepPruned" not in leaf


def test_a_controller_that_is_killed_around_every_write_deletes_what_is_to_go_and_nothing_else(
    cluster: ClusterOfPeers,
) -> None:
    add_kept(cluster, "web", "last=2", NIGHTS[:3])
    settings = str(cluster.controller_file())
    with cluster.peer() as peer:
        for _ in range(6):
            for when in ("before", "after"):
                command = [
                    sys.executable,
                    "-m",
                    "tests.faults.killed_controller",
                    when,
                    "--settings",
                    settings,
                    "serve",
                ]
                with subprocess.Popen(command, stderr=subprocess.DEVNULL) as dying:
                    cluster.wait_for(
                        "it dies of its first write, or has none left",
                        lambda dying=dying: dying.poll() is not None or nights(cluster, "web") == NIGHTS[1:3],
                        LIMIT,
                    )
                    dying.kill()
                peer.wake()
            if nights(cluster, "web") == NIGHTS[1:3]:
                break
    assert nights(cluster, "web") == NIGHTS[1:3]
    assert cluster.modes("web") == ["finished"] * 2


def test_run_prunes_its_machines_waits_for_that_and_no_others(cluster: ClusterOfPeers) -> None:
    for name in ("web", "other"):
        add_kept(cluster, name, "last=1", NIGHTS[:3])
    with cluster.peer(Script(digests={"web"})):
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "web")
    assert ended.code == 0, ended
    assert len(cluster.leaves("web")) == 1
    assert nights(cluster, "other") == NIGHTS[:3]


def test_a_deletion_that_nobody_takes_up_holds_no_run_up_and_no_backup_back(cluster: ClusterOfPeers) -> None:
    add_kept(cluster, "web", "last=2", NIGHTS[1:3])
    cluster.add_leaf("web", NIGHTS[0], "delete", "0", vmkeepManifestDigest="blake3:0")
    play = Script(held={("web", Mode.DELETE)}, digests={"web"})
    with cluster.peer(play) as peer:
        ended = cluster.run("--settings", str(cluster.controller_file()), "run", "web", "--timeout", "5")
        assert ended.code == 0, ended
        assert cluster.modes("web") == ["delete", "delete", "finished", "finished"]
        play.held.clear()
        peer.wake()
        serving = cluster.start("--settings", str(cluster.controller_file()), "serve")
        cluster.wait_for("two are left", lambda: len(cluster.leaves("web")) == 2)
        serving.send_signal(signal.SIGTERM)
        cluster.ended(serving)
