"""`vmkeep status` and `vmkeep plan` on a real slapd."""

import json
from collections.abc import Iterator

import pytest

from lab.slapd import SlapdOptions
from tests.conftest import SlapdFactory
from tests.slapd.cluster_of_peers import ClusterOfPeers, Ended


@pytest.fixture(scope="module")
def cluster(slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfPeers]:
    cluster = ClusterOfPeers(slapd_factory(SlapdOptions(synchronous=False)), tmp_path_factory.mktemp("console"))
    cluster.add_node("n1")
    cluster.add_machines(["failed", "good", "never", "out", "running"])
    cluster.set(cluster.tree.machine_plan("out"), sstBackupExcludeFromBackup="TRUE")
    good = {"sstProvisioningReturnValue": "0", "vmkeepSize": "3221225472"}
    cluster.add_leaf("good", "20260101T000000Z", "snapshotting", "20260101T000009Z", sstProvisioningReturnValue="47")
    cluster.add_leaf(
        "good", "20260102T000000Z", "finished", "20260102T000100Z", sstProvisioningExecutionTime="downtime: 0.4", **good
    )
    cluster.add_leaf("failed", "20260102T000000Z", "finished", "20260102T000100Z", **good)
    cluster.add_leaf(
        "failed",
        "20260103T000000Z",
        "snapshotting",
        "20260103T000009Z",
        sstProvisioningReturnValue="47",
        vmkeepMessage="no room [bold]at all",
    )
    cluster.add_leaf("running", "20260103T000000Z", "merging", "0", vmkeepPercent="42", vmkeepBandwidth="25")
    yield cluster
    cluster.close()


def vmkeep(cluster: ClusterOfPeers, *arguments: str) -> Ended:
    return cluster.run("--settings", str(cluster.settings_file("admin")), *arguments, program="vmkeep")


def schedule(cluster: ClusterOfPeers, machine: str, hour: str, active: str) -> None:
    fields = {"Minute": "0", "Hour": hour, "Day": "*", "Month": "*", "DayOfWeek": "*", "Active": active}
    values = "".join(f"-\nreplace: sstCron{name}\nsstCron{name}: {value}\n" for name, value in fields.items())
    classes = "objectClass: organizationalUnit\nobjectClass: sstVirtualizationBackupObjectClass\n"
    dn = cluster.tree.machine_plan(machine)
    cluster.slapd.modify(
        f"dn: {dn}\nchangetype: modify\nreplace: objectClass\n{classes}objectClass: sstCronObjectClass\n{values}"
    )


def test_status_shows_how_every_machine_stands(cluster: ClusterOfPeers) -> None:
    ended = vmkeep(cluster, "status")
    assert ended.code == 3, ended
    lines = {line.split()[0]: " ".join(line.split()) for line in ended.out.splitlines()}
    assert lines["good"].startswith("good n1 ok 20260102T000000Z ")
    assert lines["good"].endswith(" 3.0 GiB 0.40 s")
    assert lines["failed"].endswith("20260103T000000Z snapshotting: 47 no room [bold]at all")
    assert lines["running"].endswith("merging 42 %, at most 25 MiB/s")
    assert lines["out"].startswith("out n1 left out - ")
    assert lines["never"].startswith("never n1 never - ")
    assert "5 machines: 1 ok, 1 running, 1 failed, 1 never, 1 left out" in ended.out


def test_status_of_one_machine_exits_with_0_when_it_did_not_fail(cluster: ClusterOfPeers) -> None:
    ended = vmkeep(cluster, "status", "good")
    assert ended.code == 0, ended
    assert "failed" not in ended.out.splitlines()[1]


def test_status_as_json_has_the_documented_shape(cluster: ClusterOfPeers) -> None:
    machines = {one["machine"]: one for one in json.loads(vmkeep(cluster, "status", "--json").out)["machines"]}
    assert list(machines) == ["failed", "good", "never", "out", "running"]
    assert machines["failed"] | {"age_seconds": 0} == {
        "machine": "failed",
        "node": "n1",
        "standing": "failed",
        "last_success": "20260102T000000Z",
        "age_seconds": 0,
        "size_bytes": 3221225472,
        "downtime_seconds": None,
        "running": None,
        "failed": {
            "timestamp": "20260103T000000Z",
            "mode": "snapshotting",
            "at": "20260103T000009Z",
            "return_value": 47,
            "meaning": "not enough disk space",
            "message": "no room [bold]at all",
        },
        "trouble": None,
        "broken_promise": None,
        "not_covered": machines["never"]["not_covered"].replace("never", "failed"),
        "late": False,
        "group": None,
        "group_consistency": None,
        "group_spread_seconds": None,
    }
    assert machines["running"]["running"]["percent"] == 42
    assert machines["running"]["running"]["bandwidth"] == 25


def test_plan_of_all_shows_what_starts_when_and_why_a_machine_does_not(cluster: ClusterOfPeers) -> None:
    schedule(cluster, "good", hour="3", active="TRUE")
    schedule(cluster, "never", hour="25", active="TRUE")
    try:
        ended = vmkeep(cluster, "plan", "--at", "2026-01-02T12:00", "--days", "2")
        shown = json.loads(vmkeep(cluster, "plan", "--at", "20260102T120000Z", "--json").out)
    finally:
        for name in ("good", "never"):
            schedule(cluster, name, hour="3", active="FALSE")
    assert ended.code == 0, ended
    machine = cluster.tree.machine_plan("never")
    assert ended.out.splitlines() == [
        "at once, missed at Fri 2026-01-02 03:00 UTC  20260102T030000Z  good",
        "Sat 2026-01-03 03:00 UTC  20260103T030000Z  good",
        "Sun 2026-01-04 03:00 UTC  20260104T030000Z  good",
        f"failed  not active: sstCronActive is FALSE in {cluster.tree.cluster_plan}",
        f"never  refused: sstCronHour is '25' in {machine}: it is not a cron field",
        f"out  left out: sstBackupExcludeFromBackup is TRUE in {cluster.tree.machine_plan('out')}",
        f"running  not active: sstCronActive is FALSE in {cluster.tree.cluster_plan}",
        "5 machines; 2 days from Fri 2026-01-02 12:00 UTC, zone UTC",
    ]
    assert [start["slot"] for start in shown["starts"]] == ["20260102T030000Z", "20260103T030000Z"]
    assert {one["machine"]: one["why"] for one in shown["absences"]}["never"] == "refused"


def test_plan_of_one_machine_shows_its_next_starts_in_the_cluster_s_zone(cluster: ClusterOfPeers) -> None:
    schedule(cluster, "good", hour="3", active="TRUE")
    settings = cluster.settings_file("admin", timezone="Europe/Zurich")
    arguments = ("plan", "good", "--at", "2026-07-01", "--days", "1")
    try:
        out = cluster.run("--settings", str(settings), *arguments, program="vmkeep").out
        shown = json.loads(cluster.run("--settings", str(settings), *arguments, "--json", program="vmkeep").out)
    finally:
        schedule(cluster, "good", hour="3", active="FALSE")
    assert "Wed 2026-07-01 03:00 CEST  20260701T010000Z  good" in out.splitlines()
    assert shown["schedule"]["from"] == "20260630T220000Z"
    assert shown["schedule"]["starts"][-1]["local"] == "2026-07-01T03:00+02:00"


@pytest.mark.parametrize("arguments", [["--at", "tomorrow"], ["--at", "9999-12-31"], ["--days", "-1"]])
def test_plan_of_a_time_that_is_none_is_wrong_usage(cluster: ClusterOfPeers, arguments: list[str]) -> None:
    ended = vmkeep(cluster, "plan", *arguments)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["status", "plan"])
def test_an_unknown_machine_gives_one_sentence_and_exit_code_1(cluster: ClusterOfPeers, command: str) -> None:
    ended = vmkeep(cluster, command, "nosuch")
    assert ended.code == 1
    assert ended.err.startswith("vmkeep: nosuch: there is no machine of this name below ou=virtual machines")


def test_plan_shows_each_value_with_its_origin(cluster: ClusterOfPeers) -> None:
    cluster.set(cluster.tree.machine_plan("good"), sstBackupNumberOfIterations="7")
    shown = json.loads(vmkeep(cluster, "plan", "good", "--json").out)
    assert shown["left_out"] is False
    assert shown["plan"]["sstBackupNumberOfIterations"] == {"value": "7", "from": "machine"}
    assert shown["plan"]["sstBackupRetainDirectory"]["from"] == "cluster"
    table = vmkeep(cluster, "plan", "good").out
    assert "sstBackupNumberOfIterations" in table
    assert "machine" in table


def test_plan_of_a_machine_that_is_left_out_says_so(cluster: ClusterOfPeers) -> None:
    assert "out is left out of every run" in vmkeep(cluster, "plan", "out").out
