"""`vmkeep restore --as`, on a real slapd whose agent and controller are played by plain claims."""

import pytest

from tests.slapd.cluster_of_peers import ClusterOfPeers
from tests.slapd.console_driver import NEW, arguments, at_a_terminal, exists, leaf, mode, new_machine, vmkeep
from tests.slapd.restore_counterpart import Counterpart, Play
from vmkeep.contract.modes import Mode


def test_a_new_machine_is_made_beside_the_old_one(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    original = cluster.slapd.search(cluster.tree.machine(machine), scope="base")[0]
    with Counterpart(cluster):
        ended = vmkeep(cluster, "restore", machine, "--as", new, "--yes")
    assert ended.code == 0, ended
    assert f"{new}: restored as it was at {NEW}" in ended.out
    assert "going on" not in ended.out
    assert "nothing differs" not in ended.out
    made = cluster.slapd.search(cluster.tree.machine(new), scope="base")[0]
    assert (made["sstVirtualMachine"], made["sstDisplayName"]) == ([new], [new])
    differ = {name for name in original.keys() | made.keys() if original.get(name) != made.get(name)}
    assert differ == {"dn", "sstVirtualMachine", "sstDisplayName"}
    assert cluster.modes(new) == []
    assert mode(cluster, machine) == "finished"


def test_the_leaf_of_the_new_machine_names_the_set_and_what_is_wished(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    vmkeep(cluster, "restore", machine, "--as", new, "--keep-mac", "--isolated", "--timeout", "0.3")
    found, original = leaf(cluster, new), leaf(cluster, machine)
    assert found["vmkeepRestoreFrom"] == [machine]
    assert (found["vmkeepRestoreKeepMac"], found["vmkeepRestoreIsolated"]) == (["TRUE"], ["TRUE"])
    for name in ("vmkeepSetDirectory", "vmkeepManifestDigest", "ou"):
        assert found[name] == original[name]


def test_declining_takes_the_new_machine_back(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    with Counterpart(cluster):
        code, shown = at_a_terminal(cluster, "n\n", "restore", machine, "--as", new)
    assert code == 3, shown
    assert not exists(cluster, cluster.tree.machine(new))


@pytest.mark.parametrize("failing", [Mode.UNRETAIN_SMALL_FILES, Mode.UNRETAIN_LARGE_FILES])
def test_a_failure_before_the_restore_takes_the_new_machine_back(
    cluster: ClusterOfPeers, machine: str, failing: Mode
) -> None:
    new = f"{machine}-copy"
    with Counterpart(cluster, Play(failures={failing: 37})):
        ended = vmkeep(cluster, "restore", machine, "--as", new, "--yes")
    assert ended.code == 1, ended
    assert "37, missing necessary files" in ended.out
    assert not exists(cluster, cluster.tree.machine(new))


def test_what_an_interrupted_call_left_is_gone_on_with(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    vmkeep(cluster, "restore", machine, "--as", new, "--timeout", "0.3")
    with Counterpart(cluster):
        ended = vmkeep(cluster, "restore", machine, "--as", new, "--yes")
    assert ended.code == 0, ended
    assert f"{new}: going on with the restore of {NEW}" in ended.out


def test_abort_takes_a_new_machine_back_whose_restore_waits(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    vmkeep(cluster, "restore", machine, "--as", new, "--timeout", "0.3")
    ended = vmkeep(cluster, "abort", new)
    assert ended.code == 0, ended
    assert not exists(cluster, cluster.tree.machine(new))
    assert mode(cluster, machine) == "finished"


def test_abort_keeps_an_entry_that_holds_more_than_a_restore_made(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    vmkeep(cluster, "restore", machine, "--as", new, "--timeout", "0.3")
    dn = f"ou=devices,{cluster.tree.machine(new)}"
    cluster.slapd.add(f"dn: {dn}\nobjectClass: organizationalUnit\nou: devices\n")
    ended = vmkeep(cluster, "abort", new)
    assert ended.code == 0, ended
    assert f"{new}: the leaf {NEW} is removed; its entry stays" in ended.out
    assert exists(cluster, dn)


def test_the_controllers_login_is_told_to_be_the_admin(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    before = cluster.context_csn()
    as_controller = ("--settings", str(cluster.settings_file("controller")))
    ended = cluster.run(*as_controller, "restore", machine, "--as", new, "--yes", program="vmkeep")
    assert (ended.code, cluster.context_csn()) == (1, before), ended
    assert f"vmkeep: {new}: the directory " in ended.err
    assert "log in as the admin (bind_dn and password_file below [directory]" in ended.err


def test_a_name_that_is_taken_is_refused_and_nothing_is_written(cluster: ClusterOfPeers, machine: str) -> None:
    other = new_machine(cluster)
    before = cluster.context_csn()
    for taken in (other, machine):
        ended = vmkeep(cluster, "restore", machine, "--as", taken, "--yes")
        assert (ended.code, cluster.context_csn()) == (1, before), ended
        assert f"{taken}: there is a machine of this name already" in ended.err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--as", "../../etc"], 1, "'../../etc' is not allowed"),
        (["--as", "new", "--disk", "vda"], 2, "--disk"),
        (["--as", "new", "--keep-old"], 2, "--keep-old"),
        (["--isolated"], 2, "--as NEWNAME"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_nothing_is_written(
    cluster: ClusterOfPeers, machine: str, more: list[str], code: int, said: str
) -> None:
    before = cluster.context_csn()
    ended = vmkeep(cluster, "restore", machine, "--yes", *more)
    assert (ended.code, cluster.context_csn()) == (code, before), ended
    assert said in ended.err


def test_a_restore_that_somebody_else_ended_takes_the_new_machine_back(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    process = cluster.start(*arguments(cluster, "restore", machine, "--as", new), program="vmkeep")
    cluster.wait_for("the leaf is there", lambda: exists(cluster, cluster.tree.machine(new)) and cluster.modes(new))
    cluster.slapd.delete(cluster.tree.leaf(new, NEW))
    ended = cluster.ended(process)
    assert ended.code == 3, ended
    assert not exists(cluster, cluster.tree.machine(new))


def test_a_restore_that_failed_is_kept_to_be_looked_at_until_abort(cluster: ClusterOfPeers, machine: str) -> None:
    new = f"{machine}-copy"
    with Counterpart(cluster, Play(failures={Mode.RESTORE: 41})):
        ended = vmkeep(cluster, "restore", machine, "--as", new, "--yes")
    assert ended.code == 1, ended
    assert f"`vmkeep abort {new}` removes what was made for it" in ended.out
    assert mode(cluster, new) == "restoring"
    assert vmkeep(cluster, "abort", new).code == 0
    assert not exists(cluster, cluster.tree.machine(new))
