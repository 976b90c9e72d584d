"""Twelve guests on three nodes, four of them one group: what the directory recorded, and what the guests saw of it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from lab import services
from lab.cluster import Lab, LabOptions
from lab.machines import Machine, MachineSpec
from lab.slapd import SlapdOptions
from lab.ticks import Follower
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.conftest import end
from tests.cluster.plain import Plain
from tests.cluster.test_methods import with_method
from tests.concurrency import most_at_once, moves
from tests.conftest import ClusterFactory
from vmkeep.contract.grouping import from_instant

BUDGETS = "[budgets.snapshots]\nper_node = 1\n[budgets.merges]\noverall = 2\n"
COUNTS = 5  # of each guest before and after
START = "sstVirtualizationVirtualMachineSequenceStart"
CLOSE = 1.0  # seconds that libvirt may take to stop a guest, on a busy host


@pytest.fixture(scope="module")
def twelve(cluster: ClusterFactory) -> Iterator[Lab]:
    """vm-0001 to vm-0004 are group Shop on three nodes, where two of them share one; the first two count."""
    lab = cluster(LabOptions(nodes=3, machines=0, agents=True, slapd=SlapdOptions(audit=True)))
    plain = Plain(lab)
    for machine in lab.add_machines([MachineSpec(period_ms=50)] * 2 + [MachineSpec(kind="bios")] * 10)[:4]:
        with_method(plain, machine, "save", vmkeepGroup="Shop")
    yield lab
    for machine in lab.machines.values():
        end(machine)
    lab.down()


@pytest.fixture
def settings(twelve: Lab, tmp_path: Path) -> Path:
    path = tmp_path / "controller.toml"
    path.write_text(twelve.controller_settings.read_text() + BUDGETS)
    return path


def group_of(lab: Lab) -> list[Machine]:
    return list(lab.machines.values())[:4]


def run(settings: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [services.script("vmkeep-controller"), "--settings", settings, "run", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)


def newest_leaf(lab: Lab, machine: str) -> dict[str, list[str]]:
    found = lab.directory.search(lab.tree.machine(machine), "(objectClass=sstProvisioning)")
    return max(found, key=lambda leaf: leaf["ou"])


def seconds(leaf: dict[str, list[str]], what: str) -> float:
    [value] = [each for each in leaf["sstProvisioningExecutionTime"] if each.startswith(f"{what}:")]
    return float(value.partition(":")[2])


def silence(follower: Follower) -> tuple[float, float]:
    """From when to when a guest was silent for longest, by the wall clock."""
    offset = time.time() - time.monotonic()
    times = [moment + offset for _, moment in follower.arrivals]
    return max(pairwise(times), key=lambda pair: pair[1] - pair[0])


def test_a_group_is_one_instant_across_nodes_and_no_budget_is_exceeded(twelve: Lab, settings: Path) -> None:
    group = group_of(twelve)
    counting = group[:2]
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(machine.serial)) for machine in counting]
        for machine in counting:
            twelve.wait_for_count(machine.name, more=COUNTS)
        done = run(settings, "--all")
        for machine in counting:
            twelve.wait_for_count(machine.name, more=COUNTS)
    assert done.returncode == 0, done.stdout + done.stderr

    names = {machine.name for machine in group}
    node_of = {name: machine.node.name for name, machine in twelve.machines.items()}
    history = twelve.directory.history(twelve.tree.machines)
    single = [
        write for write in history if not any(f"sstVirtualMachine={name}," in write["reqDN"][0] for name in names)
    ]
    assert most_at_once(single, "snapshot", node_of.__getitem__) == dict.fromkeys(twelve.nodes, 1)
    first, *others = twelve.nodes
    assert most_at_once(history, "snapshot", node_of.__getitem__) == {first: 2, **dict.fromkeys(others, 1)}
    assert most_at_once(history, "merge") == {"all": 2}
    asked = [machine for machine, mode, _ in moves(history) if mode == "snapshot"]
    first_asked = min(asked.index(name) for name in names)
    assert set(asked[first_asked : first_asked + 4]) == names, "side by side"

    leaves = {machine.name: newest_leaf(twelve, machine.name) for machine in group}
    assert {leaf["vmkeepGroupConsistency"][0] for leaf in leaves.values()} == {"consistent"}
    [spread] = {float(leaf["vmkeepGroupSpread"][0]) for leaf in leaves.values()}
    slowest = max(seconds(leaf, "snapshot") for leaf in leaves.values())
    print(f"spread of the group {spread:.3f} s, its slowest snapshot {slowest:.3f} s")
    assert spread <= slowest
    for machine, follower in zip(counting, followers, strict=True):
        instant = from_instant(leaves[machine.name]["vmkeepInstant"][0])
        begun, ended = silence(follower)
        assert instant is not None
        assert begun - CLOSE <= instant.timestamp() <= ended, f"{machine.name} stood still when its leaf says so"
    for machine in twelve.machines.values():
        sets.assert_digests(sets.directory_of(machine, newest_leaf(twelve, machine.name)["ou"][0]))


def test_one_that_fails_marks_the_group_and_the_others_are_good_backups(twelve: Lab, settings: Path) -> None:
    plain, group = Plain(twelve), group_of(twelve)
    bad = group[1]
    plan = twelve.tree.machine_plan(bad.name)
    plain.modify(plan, f"add sstBackupRetainDirectory file://{bad.node.folder}/nowhere")
    done = run(settings, *(machine.name for machine in group))
    plain.modify(plan, "delete sstBackupRetainDirectory")
    assert done.returncode == 3, done.stdout + done.stderr
    told = f"inconsistent: {bad.name} failed in snapshotting (return value 25, retain root missing)"
    for machine in group:
        leaf = newest_leaf(twelve, machine.name)
        assert leaf["vmkeepGroupConsistency"] == [told]
        if machine is not bad:
            assert (leaf["sstProvisioningMode"], leaf["sstProvisioningReturnValue"]) == (["finished"], ["0"])
            sets.assert_digests(sets.directory_of(machine, leaf["ou"][0]))
    shown = plain.console("status", group[0].name)
    assert f"is not one instant with group Shop: {told}" in shown.stdout


def in_order_of_starting(lab: Lab, wait: str) -> list[Machine]:
    """vm-0003, vm-0002, vm-0001 run on in this order; the other has no number."""
    plain, ordered = Plain(lab), group_of(lab)[2::-1]
    for number, machine in enumerate(ordered):
        values = f"replace {START} {number}", f"replace vmkeepStartWait {wait}"
        plain.modify(lab.tree.machine_plan(machine.name), *values)
    return ordered


@contextmanager
def a_slow_agent(lab: Lab, node: str) -> Iterator[Callable[[], None]]:
    """A node's agent stands still until it is told to go on."""
    agent = lab.process(f"nodeagent {node}")
    assert agent is not None
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(agent.pid, signal.SIGCONT)
    finally:
        os.kill(agent.pid, signal.SIGCONT)


def started_run(settings: Path, *machines: str) -> "subprocess.Popen[str]":
    argv = [services.script("vmkeep-controller"), "--settings", settings, "run", *machines]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def is_active(machine: Machine) -> bool:
    return bool(machine.node.domain(machine.name).isActive())


def started(lab: Lab, machine: Machine) -> float:
    moment = from_instant(newest_leaf(lab, machine.name)["vmkeepStarted"][0])
    assert moment is not None
    return moment.timestamp()


def test_saved_machines_run_on_in_the_order_of_starting(twelve: Lab, settings: Path) -> None:
    ordered = in_order_of_starting(twelve, "60")
    counting = group_of(twelve)[:2]
    with ExitStack() as stack:
        followers = {machine.name: stack.enter_context(Follower(machine.serial)) for machine in counting}
        for machine in counting:
            twelve.wait_for_count(machine.name, more=COUNTS)
        with a_slow_agent(twelve, ordered[0].node.name) as goes_on:
            running = started_run(settings, *(machine.name for machine in group_of(twelve)))
            until("the others to be saved", lambda: not any(map(is_active, ordered[1:])) or None, 60, 0.05)
            goes_on()
        out, _ = running.communicate(timeout=240)
        for machine in counting:
            twelve.wait_for_count(machine.name, more=COUNTS)
    assert running.returncode == 0, out
    times = [started(twelve, machine) for machine in ordered]
    print("ran on", [f"{later - times[0]:.3f} s" for later in times])
    assert times == sorted(times)
    assert len(set(times)) == len(times)
    assert "vmkeepStarted" not in newest_leaf(twelve, group_of(twelve)[3].name)
    for before, machine in pairwise(ordered):
        if machine.name in followers:
            _, ended = silence(followers[machine.name])
            assert ended >= started(twelve, before) - CLOSE, f"{machine.name} is heard of once {before.name} runs"
    for machine in ordered:
        leaf = newest_leaf(twelve, machine.name)
        assert "out of turn" not in leaf.get("vmkeepMessage", [""])[0]
        sets.assert_digests(sets.directory_of(machine, leaf["ou"][0]))


def test_a_machine_whose_turn_does_not_come_runs_on_all_the_same(twelve: Lab, settings: Path) -> None:
    """The first one's agent is away: nobody is kept standing still for longer than the plan says."""
    first, second, _ = in_order_of_starting(twelve, "2")
    twelve.kill_agent(first.node.name)
    earlier = newest_leaf(twelve, second.name)["ou"]

    def runs_on() -> bool:
        leaf = newest_leaf(twelve, second.name)
        return leaf["ou"] > earlier and leaf["sstProvisioningMode"] == ["snapshotted"]

    running = started_run(settings, first.name, second.name)
    try:
        until("the second to run on", lambda: runs_on() or None, 120, 0.1)
        assert newest_leaf(twelve, first.name)["sstProvisioningMode"] == ["snapshot"], "nobody has taken it up"
        [message] = newest_leaf(twelve, second.name)["vmkeepMessage"]
        assert "ran on out of turn: others of its group were not running within 2 s" in message
        twelve.wait_for_count(second.name, more=COUNTS)
    finally:
        twelve.start_agent(first.node.name)
        out, _ = running.communicate(timeout=240)
    assert running.returncode == 0, out
    for machine in (first, second):
        sets.assert_digests(sets.directory_of(machine, newest_leaf(twelve, machine.name)["ou"][0]))
