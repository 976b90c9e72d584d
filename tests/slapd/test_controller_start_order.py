"""The order in which machines of a group run on, on a real slapd: after their snapshots, and when they are restored."""

from collections.abc import Mapping, Sequence

import pytest

from tests.concurrency import moves
from tests.slapd.cluster_of_peers import ClusterOfPeers, Peer, Script
from vmkeep.contract.modes import Mode

pytestmark = pytest.mark.usefixtures("emptied")

STARTS = {"db": 1, "app": 2, "web": 3}
NODE_OF = {"db": "s1", "app": "s2", "web": "s3"}
TOLD = ("vmkeepStartWait", "vmkeepStarted")
STOP, START = (f"sstVirtualizationVirtualMachineSequence{what}" for what in ("Stop", "Start"))
History = Sequence[Mapping[str, Sequence[str]]]


@pytest.fixture(scope="module", autouse=True)
def nodes(cluster_of_peers: ClusterOfPeers) -> None:
    for node in NODE_OF.values():
        cluster_of_peers.add_node(node)


@pytest.fixture
def shop(cluster: ClusterOfPeers) -> ClusterOfPeers:
    """A group that stops in one order and starts in the other."""
    for name, number in STARTS.items():
        cluster.add_machines([name], NODE_OF[name])
        values = {"vmkeepGroup": "shop", STOP: 10 - number, START: number}
        lines = "".join(f"-\nreplace: {attribute}\n{attribute}: {value}\n" for attribute, value in values.items())
        dn = cluster.tree.machine_plan(name)
        cluster.slapd.modify(f"dn: {dn}\nchangetype: modify\nadd: objectClass\nobjectClass: vmkeepPlan\n{lines}")
    return cluster


def peers(cluster: ClusterOfPeers, play: Script) -> tuple[Peer, Peer, Peer]:
    first, second, third = (cluster.peer(play, node) for node in NODE_OF.values())
    return first, second, third


def told(history: History) -> list[tuple[str, str]]:
    """Machine, and what was written of its start: `5` and `0` are seconds it may wait, `runs` that it does."""
    found = []
    for write in history:
        for modification in write.get("reqMod", []):
            name, _, rest = modification.partition(":")
            if name in TOLD and rest[:1] in ("+", "="):
                machine = write["reqDN"][0].partition("sstVirtualMachine=")[2].partition(",")[0]
                found.append((machine, "runs" if name == TOLD[1] else rest[2:]))
    return found


def test_saved_machines_run_on_one_after_the_other(shop: ClusterOfPeers) -> None:
    since = len(shop.slapd.history(shop.tree.machines))
    play = Script(held={("db", Mode.SNAPSHOTTING)})
    first, second, third = peers(shop, play)
    with first, second, third:
        running = shop.start("--settings", str(shop.controller_file()), "run", "--all")
        shop.wait_for("all to be at work", lambda: all(shop.modes(name) == ["snapshotting"] for name in STARTS))
        shop.wait_for("two to wait", lambda: told(shop.slapd.history(shop.tree.machines)[since:])[2:])
        play.held.clear()
        ended = shop.ended(running, 60)
    assert ended.code == 0, ended
    assert told(shop.slapd.history(shop.tree.machines)[since:]) == [
        *(("web", "60"), ("app", "60"), ("db", "0")),  # asked, in the order of stopping
        ("db", "runs"),
        *(("app", "0"), ("app", "runs")),
        *(("web", "0"), ("web", "runs")),
    ]


def test_one_that_fails_keeps_nobody_waiting(shop: ClusterOfPeers) -> None:
    since = len(shop.slapd.history(shop.tree.machines))
    first, second, third = peers(shop, Script(failures={"db": [(Mode.SNAPSHOT, 47)]}))
    with first, second, third:
        ended = shop.run("--settings", str(shop.controller_file()), "run", "--all", limit=60)
    assert ended.code == 3, ended
    assert told(shop.slapd.history(shop.tree.machines)[since:])[3:] == [
        *(("app", "0"), ("app", "runs")),
        *(("web", "0"), ("web", "runs")),
    ]


def test_a_controller_that_comes_after_one_that_was_killed_lets_them_run_on(shop: ClusterOfPeers) -> None:
    play = Script(held={("db", Mode.SNAPSHOTTING)})
    first, second, third = peers(shop, play)
    settings = str(shop.controller_file())
    with first, second, third:
        running = shop.start("--settings", settings, "run", "--all")
        shop.wait_for("all to be at work", lambda: all(shop.modes(name) == ["snapshotting"] for name in STARTS))
        running.kill()
        running.wait()
        play.held.clear()
        serving = shop.start("--settings", settings, "serve")
        shop.wait_for("all to be finished", lambda: all(shop.modes(name) == ["finished"] for name in STARTS))
        serving.terminate()
        shop.ended(serving)


def test_machines_restored_together_are_touched_in_the_order_of_starting(shop: ClusterOfPeers) -> None:
    settings = str(shop.controller_file())
    first, second, third = peers(shop, Script())
    with first, second, third:
        assert shop.run("--settings", settings, "run", "--all", limit=60).code == 0
        leaves = {name: shop.leaves(name)[0]["dn"][0] for name in STARTS}
        for dn in leaves.values():
            shop.set(dn, sstProvisioningMode="unretainSmallFiles", sstProvisioningState="0")
        shop.wait_for("the small files", lambda: all(shop.modes(name) == ["unretainedSmallFiles"] for name in STARTS))
    since = len(shop.slapd.history(shop.tree.machines))
    play = Script(held={("db", Mode.UNRETAIN_LARGE_FILES)})
    first, second, third = peers(shop, play)
    with first, second, third:
        serving = shop.start("--settings", settings, "serve")
        for dn in leaves.values():
            shop.set(dn, sstProvisioningMode="unretainLargeFiles", sstProvisioningState="0")
        shop.wait_for(
            "the others", lambda: all(shop.modes(name) == ["unretainedLargeFiles"] for name in ("app", "web"))
        )
        play.held.clear()
        first.wake()
        shop.wait_for("all to be restored", lambda: all(shop.modes(name) == ["finished"] for name in STARTS))
        serving.terminate()
        said = shop.ended(serving)
    made = [(name, mode) for name, mode, _ in moves(shop.slapd.history(shop.tree.machines)[since:])]
    for earlier, later in (("db", "app"), ("app", "web")):
        assert made.index((earlier, "restored")) < made.index((later, "restore"))
    assert "the restore of" in said.err + said.out
    assert "waits (group shop: db is restored first)" in said.err + said.out
