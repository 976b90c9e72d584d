"""Groups and budgets on a real slapd: the history of its writes says how much was at work at once, and with whom."""

import re
from pathlib import Path

import pytest

from tests.concurrency import most_at_once, moves
from tests.slapd.cluster_of_peers import ClusterOfPeers, Script
from vmkeep.contract.modes import Mode

pytestmark = pytest.mark.usefixtures("emptied")

NODES = ("n1", "n2", "n3")


@pytest.fixture(scope="module", autouse=True)
def nodes(cluster_of_peers: ClusterOfPeers) -> None:
    for node in NODES[1:]:
        cluster_of_peers.add_node(node)


def join(cluster: ClusterOfPeers, machine: str, **plan: object) -> None:
    """A machine's plan names a group, as an admin adds it."""
    lines = "".join(f"-\nreplace: {name}\n{name}: {value}\n" for name, value in plan.items())
    dn = cluster.tree.machine_plan(machine)
    cluster.slapd.modify(f"dn: {dn}\nchangetype: modify\nadd: objectClass\nobjectClass: vmkeepPlan\n{lines}")


def settings(cluster: ClusterOfPeers, budgets: str, **values: object) -> str:
    path = cluster.controller_file(**values)
    path.write_text(path.read_text() + budgets)
    return str(path)


def told(cluster: ClusterOfPeers, machine: str) -> tuple[str, ...]:
    [leaf] = cluster.leaves(machine)
    names = ("vmkeepGroup", "vmkeepGroupConsistency")
    return tuple(leaf.get(name, ["-"])[0] for name in names)


def test_a_group_goes_as_one_and_no_budget_is_ever_exceeded(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    node_of = {f"m{number}": NODES[number % 3] for number in range(9)}
    for name, node in node_of.items():
        cluster.add_machines([name], node)
    group = ["m3", "m4", "m8"]
    for number, name in enumerate(group):
        order = {"sstVirtualizationVirtualMachineSequenceStart": number} if number else {}
        join(cluster, name, vmkeepGroup="Web Shop", **order)
    budgets = "[budgets.snapshots]\nper_node = 1\n[budgets.merges]\noverall = 2\n[budgets.retains]\nper_root = 1\n"
    since = len(cluster.slapd.history(cluster.tree.machines))
    with cluster.peer(node="n1"), cluster.peer(node="n2"), cluster.peer(node="n3"):
        ended = cluster.run("--settings", settings(cluster, budgets), "run", "--all", limit=60)
    assert ended.code == 0, ended
    history = cluster.slapd.history(cluster.tree.machines)[since:]
    assert most_at_once(history, "snapshot", node_of.__getitem__) == dict.fromkeys(NODES, 1)
    assert most_at_once(history, "merge") == {"all": 2}
    assert most_at_once(history, "retain") == {"all": 1}
    asked = [machine for machine, mode, _ in moves(history) if mode == "snapshot"]
    first = asked.index("m4")
    assert asked[first : first + 3] == ["m4", "m8", "m3"], "side by side, by their start numbers"
    for name in node_of:
        expected = ("Web Shop", "consistent") if name in group else ("-", "-")
        assert told(cluster, name) == expected
    assert "group Web Shop consistent within" in next(line for line in ended.out.splitlines() if line.startswith("m3:"))


def given(cluster: ClusterOfPeers, mode: str) -> list[str]:
    """What was asked for with this mode, as the modify that asked for it says; "-" for no word of a bandwidth."""
    found = []
    for write in cluster.slapd.history(cluster.tree.machines):
        values = dict(re.findall(r"^(\w+):[+=] ?(.*)$", "\n".join(write.get("reqMod", [])), re.MULTILINE))
        if values.get("sstProvisioningMode") == mode:
            found.append(values.get("vmkeepBandwidth", "-"))
    return found


def test_each_is_asked_with_its_share_of_the_bandwidth_and_ends_without_it(cluster: ClusterOfPeers) -> None:
    for number in range(6):
        cluster.add_machines([f"m{number}"], NODES[number % 2])
    budgets = (
        "[budgets.merges]\noverall = 3\nbandwidth_overall = 100\nper_node = 2\nbandwidth_per_node = 50\n"
        "[budgets.retains]\nper_root = 2\nbandwidth_per_root = 80\n"
    )
    before = len(given(cluster, "merge")), len(given(cluster, "retain"))
    since = len(cluster.slapd.history(cluster.tree.machines))
    with cluster.peer(node="n1"), cluster.peer(node="n2"):
        ended = cluster.run("--settings", settings(cluster, budgets), "run", "--all", limit=60)
    assert ended.code == 0, ended
    history = cluster.slapd.history(cluster.tree.machines)[since:]
    assert given(cluster, "merge")[before[0] :] == ["25"] * 6, "50 on a node among two; 100 overall would give 33"
    assert given(cluster, "retain")[before[1] :] == ["40"] * 6
    assert most_at_once(history, "merge")["all"] <= 3
    assert most_at_once(history, "retain")["all"] <= 2
    for number in range(6):
        [leaf] = cluster.leaves(f"m{number}")
        assert (leaf["sstProvisioningMode"], leaf.get("vmkeepBandwidth")) == (["finished"], None)


def test_members_with_a_higher_stop_number_are_asked_once_the_lower_ones_are_at_work(cluster: ClusterOfPeers) -> None:
    for name, node in (("db", "n1"), ("web", "n2")):
        cluster.add_machines([name], node)
        number = 1 if name == "web" else 2
        join(cluster, name, vmkeepGroup="shop", sstVirtualizationVirtualMachineSequenceStop=number)
    since = len(cluster.slapd.history(cluster.tree.machines))
    with cluster.peer(node="n1"), cluster.peer(node="n2"):
        ended = cluster.run("--settings", settings(cluster, ""), "run", "--all")
    assert ended.code == 0, ended
    made = [(machine, mode) for machine, mode, _ in moves(cluster.slapd.history(cluster.tree.machines)[since:])]
    assert made.index(("web", "snapshotting")) < made.index(("db", "snapshot"))
    assert told(cluster, "db") == told(cluster, "web") == ("shop", "consistent")


def test_one_that_fails_marks_its_group_and_is_named_and_a_restore_warns(cluster: ClusterOfPeers) -> None:
    for name in ("db", "web"):
        cluster.add_machines([name])
        join(cluster, name, vmkeepGroup="shop")
    chosen = settings(cluster, "")
    with cluster.peer(Script(failures={"db": [(Mode.SNAPSHOT, 47)]})):
        ended = cluster.run("--settings", chosen, "run", "--all")
    assert ended.code == 3, ended
    why = "inconsistent: db failed in snapshotting (return value 47, not enough disk space)"
    assert told(cluster, "db") == told(cluster, "web") == ("shop", why)
    assert f"group shop {why}" in next(line for line in ended.out.splitlines() if line.startswith("web:"))
    console = str(cluster.settings_file("admin"))
    shown = cluster.run("--settings", console, "status", "web", program="vmkeep")
    assert f"is not one instant with group shop: {why}" in shown.out
    with cluster.peer(node="n1"):
        restored = cluster.run("--settings", console, "restore", "web", "--diff", program="vmkeep")
    assert f"is whole, and not one instant with its group shop: {why}" in restored.out + restored.err


def test_a_node_that_is_down_uses_up_nothing_of_the_others(cluster: ClusterOfPeers) -> None:
    """Three machines of a node without an agent are the first in every order, and there is room for one."""
    cluster.add_machines(["a1", "a2", "a3"], "n3")
    cluster.add_machines(["b1", "b2", "b3"], "n1")
    since = len(cluster.slapd.history(cluster.tree.machines))
    chosen = settings(cluster, "[budgets.snapshots]\noverall = 1\n", take_up_seconds=1, reconcile_seconds=0.3)
    serving = cluster.start("--settings", chosen, "run", "a1", "a2", "a3", "b1", "b2", "b3")
    with cluster.peer(node="n1"):
        ended = cluster.ended(serving, 60)
    assert ended.code == 3, ended
    made = [(machine, mode) for machine, mode, _ in moves(cluster.slapd.history(cluster.tree.machines)[since:])]
    assert made.index(("a1", "finished")) < made.index(("b1", "snapshot")), "until then nobody could know"
    assert made.index(("b1", "snapshot")) < made.index(("a2", "finished")), "from then on nobody waits for it"
    assert made.index(("a2", "finished")) < made.index(("a3", "snapshot")), "which is asked for one at a time"
    assert "3 of 6 machines finished" in ended.out
