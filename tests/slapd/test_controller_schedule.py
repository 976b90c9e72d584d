"""What is due by the plans, started by `serve` and by `run --due` on a real slapd: once, whoever dies or meets whom."""

import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers, Script
from tests.slapd.test_controller_run import TWELVE_STEPS
from vmkeep.contract.modes import Mode
from vmkeep.contract.timestamps import to_timestamp

pytestmark = pytest.mark.usefixtures("emptied")


@pytest.fixture
def slot() -> datetime:
    """Some minutes ago, so that the next one is a day away however slow the test is."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=2)


def plan(cluster: ClusterOfPeers, machine: str, minute: object, hour: object, active: str = "TRUE") -> None:
    """A machine's own schedule, as an admin adds it."""
    fields = {"Minute": minute, "Hour": hour, "Day": "*", "Month": "*", "DayOfWeek": "*", "Active": active}
    lines = "".join(f"-\nreplace: sstCron{name}\nsstCron{name}: {value}\n" for name, value in fields.items())
    dn = cluster.tree.machine_plan(machine)
    cluster.slapd.modify(f"dn: {dn}\nchangetype: modify\nadd: objectClass\nobjectClass: sstCronObjectClass\n{lines}")


def add_planned(cluster: ClusterOfPeers, names: list[str], slot: datetime) -> None:
    cluster.add_machines(names)
    for name in names:
        plan(cluster, name, slot.minute, slot.hour)


def names_of_leaves(cluster: ClusterOfPeers, machine: str) -> list[str]:
    return [leaf["ou"][0] for leaf in cluster.leaves(machine)]


def is_finished(cluster: ClusterOfPeers, names: list[str]) -> bool:
    return all(cluster.modes(name) == ["finished"] for name in names)


def test_a_controller_that_is_killed_around_its_first_writes_starts_no_slot_twice(
    cluster: ClusterOfPeers, slot: datetime
) -> None:
    add_planned(cluster, ["a", "b"], slot)
    settings = str(cluster.controller_file())
    for when in ("before", "after", "before", "after", "after", "after"):
        command = [sys.executable, "-m", "tests.faults.killed_controller", when, "--settings", settings, "serve"]
        died = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=LIMIT)
        assert died.returncode == -signal.SIGKILL
        assert {*names_of_leaves(cluster, "a"), *names_of_leaves(cluster, "b")} <= {to_timestamp(slot)}
    with cluster.peer():
        serving = cluster.start("--settings", settings, "serve")
        cluster.wait_for("both are finished", lambda: is_finished(cluster, ["a", "b"]))
        serving.send_signal(signal.SIGTERM)
        cluster.ended(serving)
    for name in ("a", "b"):
        # One that was only added, by a controller two tenures ago, may be taken away and added again.
        steps = [line for line in cluster.transcript(name) if line != TWELVE_STEPS[0]]
        assert steps == TWELVE_STEPS[1:]
        assert names_of_leaves(cluster, name) == [to_timestamp(slot)]


def test_two_controllers_that_serve_start_what_is_due_once_under_the_planned_time_and_nothing_else(
    cluster: ClusterOfPeers, slot: datetime
) -> None:
    names = [f"m{number}" for number in range(8)]
    add_planned(cluster, names, slot)
    cluster.add_machines(["unplanned"])
    settings = str(cluster.controller_file())
    with cluster.peer():
        both = [cluster.start("--settings", settings, "serve") for _ in range(2)]
        cluster.wait_for("all are finished", lambda: is_finished(cluster, names))
        for serving in both:
            serving.send_signal(signal.SIGTERM)
        ended = [cluster.ended(serving) for serving in both]
    assert [one.code for one in ended] == [0, 0], ended
    for name in names:
        assert names_of_leaves(cluster, name) == [to_timestamp(slot)]
        assert cluster.transcript(name) == TWELVE_STEPS, (name, ended)
    assert cluster.leaves("unplanned") == []
    said = [line for one in ended for line in one.err.splitlines()]
    assert len([line for line in said if f"{to_timestamp(slot)} is due" in line]) == len(names)
    assert len([line for line in said if "8 machines have a schedule, 1 not active" in line]) == 1, "one stands by"


def test_a_clock_that_was_an_hour_ahead_and_is_set_right_starts_nothing_again(cluster: ClusterOfPeers) -> None:
    soon = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=30)
    add_planned(cluster, ["web"], soon)
    due = ("--settings", str(cluster.controller_file()), "run", "--due")
    with cluster.peer():
        ahead = [sys.executable, "-m", "tests.faults.erring_controller", "3600", *due]
        assert subprocess.run(ahead, stdout=subprocess.DEVNULL, timeout=LIMIT).returncode == 0
        assert names_of_leaves(cluster, "web") == [to_timestamp(soon)]
        ended = cluster.run(*due)
    assert (ended.code, ended.out) == (0, "")
    assert names_of_leaves(cluster, "web") == [to_timestamp(soon)]


def test_several_run_due_at_once_double_nothing_and_later_ones_say_nothing(
    cluster: ClusterOfPeers, slot: datetime
) -> None:
    names = [f"m{number}" for number in range(6)]
    add_planned(cluster, names, slot)
    due = ("--settings", str(cluster.controller_file()), "run", "--due")
    with cluster.peer():
        processes = [cluster.start(*due) for _ in range(3)]
        ended = [cluster.ended(process) for process in processes]
    assert [one.code for one in ended] == [0, 0, 0], ended
    for name in names:
        assert cluster.transcript(name) == TWELVE_STEPS, (name, ended)
    summary = f"{to_timestamp(slot)}: 6 of 6 machines finished, downtime 0.2 s median, 0.2 s longest\n"
    assert any(one.out.endswith(summary) for one in ended), ended
    again = cluster.run(*due)
    assert (again.code, again.out, again.err) == (0, "", "")


def test_a_slot_that_is_caught_up_late_says_so_on_its_leaf_and_keeps_the_barrier(cluster: ClusterOfPeers) -> None:
    slot = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=3)
    add_planned(cluster, ["fast", "slow"], slot)
    for name in ("fast", "slow"):
        cluster.add_leaf(name, to_timestamp(slot - timedelta(days=3)), "finished", "20260101T000000Z")
    play = Script(held={("slow", Mode.SNAPSHOT)})
    with cluster.peer(play) as peer:
        process = cluster.start("--settings", str(cluster.controller_file()), "run", "--due")
        cluster.wait_for("fast is snapshotted", lambda: cluster.modes("fast")[-1:] == ["snapshotted"])
        cluster.wait_for("slow is asked", lambda: cluster.modes("slow")[-1:] == ["snapshot"])
        assert cluster.modes("fast")[-1] == "snapshotted"
        play.held.clear()
        peer.wake()
        ended = cluster.ended(process)
    assert ended.code == 0, ended
    [_, leaf] = cluster.leaves("fast")
    left_out = f"slots left out since {to_timestamp(slot - timedelta(days=3))}: 2"
    assert leaf["ou"] == [to_timestamp(slot)]
    assert leaf["vmkeepMessage"][0].startswith("begun 3 h ")
    assert leaf["vmkeepMessage"][0].endswith(left_out)
    assert left_out in ended.out
    durations = re.findall(r"duration (\d+) s", ended.out)
    assert len(durations) == 2
    assert all(int(seconds) < 3600 for seconds in durations), "since it began, not since it was planned"


def test_run_due_tells_what_cannot_be_planned_and_when_no_machine_is(cluster: ClusterOfPeers) -> None:
    cluster.add_machines(["web"])
    due = ("--settings", str(cluster.controller_file()), "run", "--due")
    ended = cluster.run(*due)
    assert (ended.code, ended.out) == (1, "no machine has a schedule that is active: `vmkeep plan` says why\n")
    plan(cluster, "web", "61", "3")
    ended = cluster.run(*due)
    assert ended.code == 1
    assert "web: failed, return value 105" in ended.out
    assert "sstCronMinute is '61'" in ended.out


@pytest.mark.parametrize("arguments", [["web"], ["--all"]])
def test_due_with_other_machines_is_wrong_usage(cluster: ClusterOfPeers, arguments: list[str]) -> None:
    assert cluster.run("--settings", str(cluster.controller_file()), "run", "--due", *arguments).code == 2


def test_the_zone_of_the_settings_is_that_of_the_fields(cluster: ClusterOfPeers) -> None:
    now = datetime.now(UTC)
    local = (now - timedelta(minutes=2)).astimezone(ZoneInfo("Asia/Kathmandu"))
    add_planned(cluster, ["web"], local)
    settings = str(cluster.controller_file(timezone="Asia/Kathmandu"))
    ended = cluster.run("--settings", settings, "run", "--due", "--timeout", "0")
    assert ended.code == 1, ended
    assert names_of_leaves(cluster, "web") == [to_timestamp(local.replace(second=0, microsecond=0))]
