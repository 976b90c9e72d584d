"""`vmkeep-nodeagent once`, `check` and `serve` on a real slapd, on a node whose libvirt is not there."""

import signal
from pathlib import Path

from lab.waiting import until
from nodeagent.host.locks import machine_lock
from nodeagent.journal import Journals, Outcome
from tests.orders import TIMESTAMP, order_in
from tests.slapd.cluster_of_peers import ClusterOfPeers
from vmkeep.contract.modes import Mode


def settings(cluster: ClusterOfPeers, folder: Path) -> str:
    state = folder / "state"
    values = {
        "node": "n1",
        "libvirt_uri": "qemu+unix:///system?socket=/nowhere/libvirt-sock",
        "state_directory": str(state),
        "allowed_roots": [str(folder)],
        "image_roots": [str(folder / "images")],
    }
    return str(cluster.settings_file("n1", **values))


def moved_on(cluster: ClusterOfPeers, machine: str) -> str:
    """A leaf that somebody took from whoever was at work on it."""
    cluster.add_machines([machine])
    return cluster.add_leaf(machine, TIMESTAMP, "finished", TIMESTAMP, sstProvisioningReturnValue="0")


def test_with_nothing_to_do_once_ends_well(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    ended = cluster.run("--settings", settings(cluster, tmp_path), "once", program="vmkeep-nodeagent")
    assert ended.code == 0, ended


def test_a_result_that_was_left_is_told_or_dropped_and_what_cannot_be_gone_on_with_is_named(
    cluster: ClusterOfPeers, tmp_path: Path
) -> None:
    journals = Journals(tmp_path / "state" / "journal")
    leaf = moved_on(cluster, "vm")
    for machine in ("vm", "busy"):
        order = order_in(tmp_path, Mode.MERGING).model_copy(update={"machine": machine, "leaf_dn": leaf})
        journals.create(order).result(Outcome(0, "", 1.0))
    with machine_lock(tmp_path / "state" / "locks", "busy"):
        ended = cluster.run("--settings", settings(cluster, tmp_path), "once", program="vmkeep-nodeagent")
    assert ended.code == 1, ended
    assert "not finished, to be gone on with by the next call: busy.20260101T000000Z.merging.journal" in ended.err
    assert [journal.order.machine for journal in journals.all()] == ["busy"]


def test_check_says_what_is_well_and_what_is_not(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    ended = cluster.run("check", "--settings", settings(cluster, tmp_path), program="vmkeep-nodeagent")
    assert ended.code == 1, ended
    lines = dict(line.split(": ", 1) for line in ended.out.splitlines())
    assert lines["well      directory"] == cluster.tree.machines
    assert lines["NOT WELL  libvirt"].startswith("libvirt at qemu+unix:")
    assert lines[f"NOT WELL  root {tmp_path}/images"] == "is not a directory"
    assert lines[f"well      root {tmp_path}"] == "there"


def test_a_node_without_an_entry_is_not_well(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    path = Path(settings(cluster, tmp_path))
    path.write_text(path.read_text().replace("node = 'n1'", "node = 'n9'"))
    ended = cluster.run("check", "--settings", str(path), program="vmkeep-nodeagent")
    assert "sstNode=n9" in ended.out
    assert "is not there, or may not be read" in ended.out


def test_serve_tells_what_was_left_and_ends_well_on_sigterm(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    journals = Journals(tmp_path / "state" / "journal")
    order = order_in(tmp_path, Mode.MERGING).model_copy(update={"leaf_dn": moved_on(cluster, "served")})
    journals.create(order).result(Outcome(0, "", 1.0))
    process = cluster.start("--settings", settings(cluster, tmp_path), "serve", program="vmkeep-nodeagent")
    until("the result to be told", lambda: not journals.all(), 20)
    process.send_signal(signal.SIGTERM)
    ended = cluster.ended(process)
    assert ended.code == 0, ended
    assert "this result is dropped" in ended.out + ended.err
