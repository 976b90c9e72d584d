"""What a node may do with the leaf of a machine that has left it: end the step it is at, let go, and nothing else."""

from collections.abc import Sequence

import ldap3
import pytest
from ldap3 import Connection

from tests.slapd.identities import TARGETS, TREE, Directory
from vmkeep.contract.names import Attribute

LEAF = TARGETS["foreignleaf"]
OWN = "node-01.example.org"  # `owner` of the identities; the leaf's machine is on the other node
ANYTHING = "(objectClass=*)"
Changes = dict[str, list[tuple[str, list[str]]]]


def moved(before: str, after: str, *more: tuple[str, Sequence[str]]) -> Changes:
    changes: Changes = {Attribute.MODE: [(ldap3.MODIFY_DELETE, [before]), (ldap3.MODIFY_ADD, [after])]}
    return changes | {name: [(ldap3.MODIFY_REPLACE, list(values))] for name, values in more}


def modified(client: Connection, changes: Changes, dn: str = LEAF) -> bool:
    return bool(client.modify(dn, changes)[0])


@pytest.fixture
def left(directory: Directory) -> Directory:
    """The machine's leaf is at merging, begun by the node it was on."""
    values = {Attribute.MODE: "merging", Attribute.STATE: "0", Attribute.AT_NODE: OWN}
    directory.root.modify(LEAF, {name: [(ldap3.MODIFY_REPLACE, [value])] for name, value in values.items()})
    return directory


def test_who_is_at_work_reads_the_leaf_notes_its_progress_ends_the_step_and_lets_go(left: Directory) -> None:
    client = left.identities["owner"]
    _, _, found, _ = client.search(LEAF, ANYTHING, ldap3.BASE, attributes=["*"])
    assert found[0]["raw_attributes"][Attribute.MODE] == [b"merging"]
    assert b"vmkeepLeaf" in found[0]["raw_attributes"]["objectClass"], "it would try to add it"
    assert modified(client, {Attribute.PERCENT: [(ldap3.MODIFY_REPLACE, ["7"])]})
    state = (Attribute.STATE, ["20260101T040000Z"])
    told = (Attribute.MESSAGE, ["done"]), (Attribute.RETURN_VALUE, ["0"]), (Attribute.SET_NODE, [OWN])
    assert modified(client, moved("merging", "merged", state, *told, (Attribute.AT_NODE, [])))
    assert not left.attempt("owner", lambda client: modified(client, moved("merged", "merging")))


@pytest.mark.parametrize(
    "changes",
    [
        moved("merging", "finished"),
        {Attribute.AT_NODE: [(ldap3.MODIFY_REPLACE, [OWN.upper()])]},
        {Attribute.ATTEMPTS: [(ldap3.MODIFY_REPLACE, ["1"])]},
        {Attribute.EXECUTION_DATE: [(ldap3.MODIFY_REPLACE, ["20270101"])]},
    ],
    ids=["the controller's mode", "whose it is", "attempts", "date"],
)
def test_it_may_do_nothing_else_with_it(left: Directory, changes: Changes) -> None:
    assert not left.attempt("owner", lambda client: modified(client, changes))


def test_the_machine_and_its_plan_stay_out_of_its_sight(left: Directory) -> None:
    for dn in (TREE.machine("foreign"), TREE.machine_plan("foreign")):
        assert not left.attempt("owner", lambda client, dn=dn: bool(client.search(dn, ANYTHING, ldap3.BASE)[2]))


def test_the_node_of_the_machine_claims_over_whoever_was_at_work(left: Directory) -> None:
    changes = moved("merging", "merging", (Attribute.AT_NODE, ["node-02.example.org"]))
    del changes[Attribute.MODE]
    assert left.attempt("other", lambda client: modified(client, changes))
