"""Leaves that nobody goes on with, on a real slapd without an agent: each ends by its plan's deadline and says why."""

from collections.abc import Iterator

import pytest

from tests.slapd.cluster_of_peers import ClusterOfPeers
from vmkeep.contract.modes import Kind, Mode, at_work, modes

LEAF = "20260101T030000Z"
NOT_TAKEN_UP, NO_SIGN_OF_LIFE = ["100"], ["108"]
# Ended by take_up_seconds: nothing has begun, so nothing failed.
ENDED_BEFORE = (Mode.SNAPSHOT, Mode.UNRETAIN_SMALL_FILES)
ASKED = tuple(mode for mode in modes(kind=Kind.IMPERATIVE) if mode not in ENDED_BEFORE)
AT_WORK = tuple(mode for mode in modes(kind=Kind.AT_WORK) if mode is not Mode.RESTORING)


def machine_of(mode: Mode) -> str:
    return f"m-{mode.lower()}"


@pytest.fixture(scope="module")
def served(cluster_of_peers: ClusterOfPeers) -> Iterator[ClusterOfPeers]:
    """A leaf in every mode of an agent, a plan with a deadline of a second for all but one, and a controller."""
    cluster = cluster_of_peers
    slapd, tree, names = cluster.slapd, cluster.tree, [machine_of(mode) for mode in (*ASKED, *AT_WORK, Mode.RESTORING)]
    cluster.add_machines([*names, "m-patient"])
    for name, mode in zip(names, (*ASKED, *AT_WORK, Mode.RESTORING), strict=True):
        plan = f"dn: {tree.machine_plan(name)}\nchangetype: modify\n"
        slapd.modify(f"{plan}add: objectClass\nobjectClass: vmkeepPlan\n-\nadd: vmkeepDeadline\nvmkeepDeadline: 1\n")
        cluster.add_leaf(name, LEAF, mode, "0", sstProvisioningReturnValue="0")
    cluster.add_leaf("m-patient", LEAF, Mode.MERGING, "0", sstProvisioningReturnValue="0")
    settings = cluster.controller_file(take_up_seconds=1, reconcile_seconds=1, attempts=0)
    cluster.start("--settings", str(settings), "serve")
    yield cluster
    cluster.close()


def leaf_of(cluster: ClusterOfPeers, mode: Mode) -> dict[str, list[str]]:
    [leaf] = cluster.leaves(machine_of(mode))
    return leaf


@pytest.mark.parametrize("mode", ASKED)
def test_what_no_agent_takes_up_fails_with_100(served: ClusterOfPeers, mode: Mode) -> None:
    served.wait_for(f"{mode} to end", lambda: leaf_of(served, mode)["sstProvisioningReturnValue"] == NOT_TAKEN_UP)
    leaf = leaf_of(served, mode)
    assert leaf["sstProvisioningMode"] == [at_work(mode)]
    assert f"no agent took {mode} up within 1 s" in leaf["vmkeepMessage"][0]


@pytest.mark.parametrize("mode", AT_WORK)
def test_what_an_agent_left_fails_with_108(served: ClusterOfPeers, mode: Mode) -> None:
    served.wait_for(f"{mode} to end", lambda: leaf_of(served, mode)["sstProvisioningReturnValue"] == NO_SIGN_OF_LIFE)
    leaf = leaf_of(served, mode)
    assert leaf["sstProvisioningMode"] == [mode]
    assert leaf["sstProvisioningState"] != ["0"]
    assert f"no sign of life for 1 s at {mode}" in leaf["vmkeepMessage"][0]


def test_a_restore_that_is_half_done_stays_its_own_agents_and_says_so(served: ClusterOfPeers) -> None:
    served.wait_for("it to be told", lambda: "vmkeepMessage" in leaf_of(served, Mode.RESTORING))
    leaf = leaf_of(served, Mode.RESTORING)
    assert (leaf["sstProvisioningMode"], leaf["sstProvisioningState"]) == (["restoring"], ["0"])
    assert "while it is restored" in leaf["vmkeepMessage"][0]


def test_a_plan_without_a_deadline_gives_a_day(served: ClusterOfPeers) -> None:
    served.wait_for("all others to end", lambda: "vmkeepMessage" in leaf_of(served, Mode.RESTORING))
    [leaf] = served.leaves("m-patient")
    assert (leaf["sstProvisioningMode"], leaf["sstProvisioningReturnValue"]) == (["merging"], ["0"])
