"""On a real slapd: who fails for good holds no later slot up, and who lacks what is promised is told everywhere."""

import json
import re
import signal
import socket
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from tests.slapd.cluster_of_peers import ClusterOfPeers, Script
from tests.slapd.test_controller_schedule import is_finished, plan
from vmkeep.contract.modes import Mode
from vmkeep.contract.timestamps import to_timestamp

pytestmark = pytest.mark.usefixtures("emptied")

HOUR = timedelta(hours=1)
GOOD = {"sstProvisioningReturnValue": "0"}


def promise(cluster: ClusterOfPeers, machine: str, value: str) -> None:
    dn = cluster.tree.machine_plan(machine)
    added = "add: objectClass\nobjectClass: vmkeepPlan\n-\nadd: vmkeepPromise\nvmkeepPromise: "
    cluster.slapd.modify(f"dn: {dn}\nchangetype: modify\n{added}{value}\n")


def add_good(cluster: ClusterOfPeers, machine: str, age: timedelta) -> str:
    timestamp = to_timestamp(datetime.now(UTC) - age)
    cluster.add_leaf(machine, timestamp, "finished", timestamp, **GOOD)
    return timestamp


def test_a_leaf_that_fails_for_good_is_tried_within_bounds_and_then_the_next_slot_runs(cluster: ClusterOfPeers) -> None:
    """Retain fails for ever; the slot that has come meanwhile starts once its bounds are used up, and not before."""
    slot = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=2)
    old = to_timestamp(slot - 24 * HOUR)
    cluster.add_machines(["web"])
    cluster.add_leaf("web", old, "retaining", old, sstProvisioningReturnValue="7", vmkeepMessage="no room")
    plan(cluster, "web", slot.minute, slot.hour)
    serve = ("--settings", str(cluster.controller_file(attempts=2, back_off_seconds=1)), "serve")
    said = ""
    with cluster.peer(Script(failures={"web": [(Mode.RETAIN, 7), (Mode.RETAIN, 7)]})):
        # The schedule is looked at when a controller starts, and then once a minute.
        for goal in (["retaining"], ["retaining", "finished"]):
            serving = cluster.start(*serve)
            cluster.wait_for(f"its leaves to be {goal}", lambda goal=goal: stand_at(cluster, goal))
            serving.send_signal(signal.SIGTERM)
            said += cluster.ended(serving).err
    assert f"web: {to_timestamp(slot)} is due and waits: the leaf {old} was in flight" in said
    first, second = cluster.leaves("web")
    assert (first["vmkeepAttempts"], first["sstProvisioningReturnValue"]) == (["2"], ["7"])
    assert second["ou"] == [to_timestamp(slot)]
    assert "asked again (2 of 2) after return value 7: scripted failure of retain" in said
    written = cluster.transcript("web")
    added = written.index("controller initialize now 0", 1)
    assert written[:added].count("controller retain 0 0") == 2, "as often as it is bounded, and before the next begins"


def stand_at(cluster: ClusterOfPeers, modes: list[str]) -> bool:
    """Whether the first leaves are these, and the very first has failed for good; a new minute may bring the next."""
    leaves = cluster.leaves("web")
    is_over = leaves[0]["sstProvisioningReturnValue"] == ["7"] and leaves[0].get("vmkeepAttempts") == ["2"]
    return is_over and [leaf["sstProvisioningMode"][0] for leaf in leaves][: len(modes)] == modes


@pytest.fixture
def promised(cluster: ClusterOfPeers) -> ClusterOfPeers:
    """A machine that has what it is promised, three that lack it each for a reason, and others without a promise."""
    cluster.add_machines(["kept", "late", "never", "ahead", "bare", "out", "planned"])
    for name in ("kept", "late", "never", "ahead"):
        promise(cluster, name, "26h")
    cluster.set(cluster.tree.machine_plan("out"), sstBackupExcludeFromBackup="TRUE")
    add_good(cluster, "kept", 3 * HOUR)
    add_good(cluster, "late", 30 * HOUR)
    failed = to_timestamp(datetime.now(UTC) - HOUR)
    cluster.add_leaf("late", failed, "snapshotting", failed, sstProvisioningReturnValue="47")
    add_good(cluster, "ahead", -12 * HOUR)
    ahead = datetime.now(UTC) + 2 * HOUR
    plan(cluster, "planned", ahead.minute, ahead.hour)
    add_good(cluster, "planned", HOUR)
    return cluster


def test_who_lacks_the_promised_backup_and_whom_no_plan_covers_is_told_everywhere(promised: ClusterOfPeers) -> None:
    cluster = promised
    admin = ("--settings", str(cluster.settings_file("admin")))
    shown = cluster.run(*admin, "status", program="vmkeep")
    assert shown.code == 3
    lines = {line.split()[0]: line for line in shown.out.splitlines()}
    own = f"{cluster.tree.machine_plan('late')} promises one within 26 h"
    assert f"is 30 h old, and {own}" in lines["late"]
    assert "it has no good backup, and" in lines["never"]
    assert "lies ahead of the clock and does not count" in lines["ahead"]
    assert "promise" not in lines["kept"] + lines["bare"] + lines["out"] + lines["planned"]
    assert shown.out.splitlines()[-1].startswith("1 machine is covered by no plan: bare;")
    machines = json.loads(cluster.run(*admin, "status", "--json", program="vmkeep").out)["machines"]
    assert {one["machine"] for one in machines if one["broken_promise"]} == {"late", "never", "ahead"}
    assert [one["machine"] for one in machines if one["not_covered"]] == ["bare"]
    assert cluster.run(*admin, "status", "kept", program="vmkeep").code == 0
    assert cluster.run(*admin, "status", "late", program="vmkeep").code == 3

    checked = cluster.run("--settings", str(cluster.controller_file()), "check")
    assert checked.code == 1
    told = [line.split(":")[0] for line in checked.out.splitlines() if "promises one" in line]
    assert told == ["MISSING ahead", "MISSING late", "MISSING never"]
    assert "note    1 machine is covered by no plan: bare" in checked.out


def test_the_log_of_a_serving_controller_tells_it_once_and_the_metrics_count_it(promised: ClusterOfPeers) -> None:
    cluster = promised
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = cluster.controller_file(reconcile_seconds=1)
    settings.write_text(settings.read_text() + f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    serving = cluster.start("--settings", str(settings), "serve")

    def metrics() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def turns() -> float:
        return float(next(iter(re.findall(r"^vmkeep_cycles_total (\S+)$", metrics(), re.MULTILINE)), 0))

    cluster.wait_for("some turns", lambda: turns() >= 3)
    counted = metrics()
    serving.send_signal(signal.SIGTERM)
    said = cluster.ended(serving).err.splitlines()
    assert "vmkeep_broken_promises 3.0" in counted
    assert "vmkeep_uncovered_machines 1.0" in counted
    assert len([line for line in said if "promises one within 26 h" in line]) == 3, said
    assert len([line for line in said if "1 machine is covered by no plan: bare" in line]) == 1


def test_a_machine_that_is_backed_up_again_is_told_no_more(promised: ClusterOfPeers) -> None:
    cluster = promised
    with cluster.peer():
        run = cluster.run("--settings", str(cluster.controller_file()), "run", "late", "never", limit=60)
    assert run.code == 0, run
    assert is_finished(cluster, ["never"])
    checked = cluster.run("--settings", str(cluster.controller_file()), "check")
    assert [line.split(":")[0] for line in checked.out.splitlines() if "promises one" in line] == ["MISSING ahead"]
