"""`vmkeep hold`, `release` and `prune` on a real slapd."""

import json

from tests.slapd.cluster_of_peers import ClusterOfPeers
from tests.slapd.console_driver import NEW, OLD, add_good, leaf, mode, vmkeep
from tests.slapd.restore_counterpart import Counterpart

OLDER = "20251231T000000Z"


def test_a_backup_that_is_held_stays_until_it_is_released(cluster: ClusterOfPeers, machine: str) -> None:
    held = vmkeep(cluster, "hold", machine, OLD, "--reason", "the audit", "--until", "2099-01-31")
    assert held.code == 0, held
    assert f"{machine}: {OLD} is held until 20990131T000000Z: the audit" in held.out
    assert leaf(cluster, machine, OLD)["vmkeepHold"] == ["20990131T000000Z the audit"]
    shown = vmkeep(cluster, "prune", "--dry-run", machine)
    assert (shown.code, "would go" in shown.out) == (0, True), shown
    assert f"{OLD}  stays  held until 20990131T000000Z: the audit" in shown.out
    refused = vmkeep(cluster, "delete", machine, OLD, "--yes")
    assert refused.code == 1
    assert f"it is held until 20990131T000000Z: the audit; `vmkeep release {machine} {OLD}` first" in refused.err
    released = vmkeep(cluster, "release", machine, OLD)
    assert released.code == 0, released
    assert "vmkeepHold" not in leaf(cluster, machine, OLD)
    again = vmkeep(cluster, "release", machine, OLD)
    assert (again.code, "is not held; nothing was changed" in again.err) == (1, True), again


def test_the_controllers_identity_may_hold_and_a_leaf_made_by_hand_takes_on_our_class(
    cluster: ClusterOfPeers, machine: str
) -> None:
    dn = cluster.tree.leaf(machine, OLDER)
    cluster.slapd.add(
        f"dn: {dn}\nobjectClass: organizationalUnit\nobjectClass: sstProvisioning\nou: {OLDER}\n"
        "sstProvisioningExecutionDate: 0\nsstProvisioningMode: finished\nsstProvisioningState: 0\n"
    )
    settings = ("--settings", str(cluster.settings_file("controller")))
    ended = cluster.run(*settings, "hold", machine, OLDER, "--reason", "made by hand", program="vmkeep")
    assert ended.code == 0, ended
    assert leaf(cluster, machine, OLDER)["vmkeepHold"] == ["made by hand"]


def test_what_is_no_hold_is_wrong_usage_and_writes_nothing(cluster: ClusterOfPeers, machine: str) -> None:
    before = cluster.context_csn()
    ended = vmkeep(cluster, "hold", machine, OLD, "--reason", "x", "--until", "2020-01-01")
    assert (ended.code, "20200101T000000Z has passed" in ended.err) == (2, True), ended
    assert vmkeep(cluster, "hold", machine, OLDER, "--reason", "x").code == 1
    assert cluster.context_csn() == before


def test_what_an_agent_has_begun_to_delete_cannot_be_held_any_more(cluster: ClusterOfPeers, machine: str) -> None:
    cluster.set(cluster.tree.leaf(machine, OLD), sstProvisioningMode="delete", sstProvisioningState="0")
    asked = vmkeep(cluster, "hold", machine, OLD, "--reason", "wait")
    assert (asked.code, "its deletion was asked for, and will be refused" in asked.out) == (0, True), asked
    cluster.set(cluster.tree.leaf(machine, OLD), sstProvisioningMode="deleting")
    late = vmkeep(cluster, "hold", machine, OLD, "--reason", "wait")
    assert (late.code, "it is too late to hold it" in late.err) == (1, True), late


def test_prune_says_why_each_stays_or_goes_and_asks_for_what_goes(cluster: ClusterOfPeers, machine: str) -> None:
    add_good(cluster, machine, OLDER)
    before = cluster.context_csn()
    shown = vmkeep(cluster, "prune", "--dry-run", "--json", machine)
    assert (shown.code, cluster.context_csn()) == (0, before), shown
    [one] = json.loads(shown.out)["machines"]
    assert (one["machine"], one["trouble"]) == (machine, None)
    assert [(each["timestamp"], each["goes"]) for each in one["backups"]] == [(NEW, False), (OLD, True), (OLDER, True)]
    assert one["backups"][0]["reasons"] == ["last 1 of 1", "the newest good one always stays"]
    tried = vmkeep(cluster, "prune", "--dry-run", "--keep", "daily=2", machine)
    assert (tried.code, "1 of 3 backups of 1 machines would go" in tried.out) == (0, True), tried
    assert vmkeep(cluster, "prune", "--keep", "daily=2", machine).code == 2
    assert cluster.context_csn() == before
    ended = vmkeep(cluster, "prune", machine)
    assert ended.code == 0, ended
    assert "2 of 3 backups of 1 machines go; 2 deletions were asked for" in ended.out
    assert (mode(cluster, machine, OLD), mode(cluster, machine, NEW)) == ("delete", "finished")
    assert leaf(cluster, machine, OLD)["vmkeepPruned"] == ["good, and no rule keeps it"]
    with Counterpart(cluster):
        cluster.wait_for("they are gone", lambda: cluster.modes(machine) == ["finished"])


def test_a_plan_that_cannot_be_read_is_told_and_its_machine_keeps_everything(
    cluster: ClusterOfPeers, machine: str
) -> None:
    dn = cluster.tree.machine_plan(machine)
    keeping = "add: objectClass\nobjectClass: vmkeepPlan\n-\nadd: vmkeepKeep\nvmkeepKeep: last=some\n"
    cluster.slapd.modify(f"dn: {dn}\nchangetype: modify\n{keeping}")
    ended = vmkeep(cluster, "prune", machine)
    assert ended.code == 3, ended
    assert f"{machine}: vmkeepKeep is 'last=some' in {dn}" in ended.err
    assert "1 machines keep everything" in ended.out
    assert cluster.modes(machine) == ["finished", "finished"]
    assert vmkeep(cluster, "prune", "--dry-run", "no-such-machine").code == 1
