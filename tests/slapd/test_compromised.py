"""What a part that has been taken over tries beyond its work, one thing after another: slapd refuses each of them.

The table in test_access says who may write what; here are the ways round it. Each is tried twice: by whom it is about,
and by the server's owner, whom no rule holds and for whom it must go through, or its refusal would show nothing.
"""

from collections.abc import Callable

import ldap3
import pytest
from ldap3 import Connection

from tests.slapd.identities import LEAF, MACHINE, NODE, TARGETS, TREE, Directory
from vmkeep.contract.names import Attribute

Attempt = Callable[[Connection], bool]
ADD, DELETE, REPLACE = ldap3.MODIFY_ADD, ldap3.MODIFY_DELETE, ldap3.MODIFY_REPLACE
ADMIN = f"cn=admin,ou=administration,{TREE.suffix}"
FOREIGN, FOREIGN_LEAF = TARGETS["foreign"], TARGETS["foreignleaf"]
RELAX = ("1.3.6.1.4.1.4203.666.5.12", True, None)


def modify(dn: str, attribute: str, *changes: tuple[str, str], controls: object = None) -> Attempt:
    """Change one attribute: (how, value) each."""
    wanted = [(how, [value]) for how, value in changes]
    return lambda client: bool(client.modify(dn, {attribute: wanted}, controls=controls)[0])


def move(dn: str, before: str, after: str) -> Attempt:
    return modify(dn, Attribute.MODE, (DELETE, before), (ADD, after))


def add(dn: str, *classes: str, **attributes: str) -> Attempt:
    return lambda client: bool(client.add(dn, [*classes], dict(attributes))[0])


def rename(dn: str, rdn: str, above: str | None = None) -> Attempt:
    return lambda client: bool(client.modify_dn(dn, rdn, new_superior=above)[0])


def delete(dn: str) -> Attempt:
    return lambda client: bool(client.delete(dn)[0])


def search(base: str, matching: str, attribute: str, controls: object = None) -> Attempt:
    """Whether an entry is found, or an attribute of it shown."""

    def attempt(client: Connection) -> bool:
        _, _, found, _ = client.search(base, matching, ldap3.SUBTREE, attributes=[attribute], controls=controls)
        return any(entry["type"] == "searchResEntry" for entry in found or ())

    return attempt


def whole_value(dn: str, attribute: str) -> Attempt:
    """Whether an attribute's value is shown."""

    def attempt(client: Connection) -> bool:
        _, _, found, _ = client.search(dn, "(objectClass=*)", ldap3.BASE, attributes=[attribute])
        return any(entry.get("raw_attributes", {}).get(attribute) for entry in found or ())

    return attempt


def set_password(dn: str) -> Attempt:
    return lambda client: client.extend.standard.modify_password(user=dn, new_password="taken-over") is not False


LEAF_CLASSES = ("organizationalUnit", "sstProvisioning")
LEAF_VALUES = {Attribute.MODE: "snapshot", Attribute.STATE: "0", Attribute.EXECUTION_DATE: "0"}

OF_A_NODE: dict[str, Attempt] = {
    # work that is another node's
    "claim another node's leaf": move(FOREIGN_LEAF, "snapshot", "snapshotting"),
    "end another node's leaf": modify(FOREIGN_LEAF, Attribute.RETURN_VALUE, (REPLACE, "5")),
    "talk over another node": modify(FOREIGN_LEAF, "vmkeepMessage", (REPLACE, "all is well")),
    "lead another node's restore elsewhere": modify(FOREIGN_LEAF, "vmkeepSetDirectory", (REPLACE, "/mnt/evil/a/b/c/d")),
    "vouch for another node's set": modify(FOREIGN_LEAF, "vmkeepManifestDigest", (REPLACE, "blake3:0")),
    "give another node's machine an entry": modify(FOREIGN_LEAF, "vmkeepEntry", (REPLACE, "dn: x")),
    "see another node's leaf": search(FOREIGN_LEAF, "(objectClass=*)", "ou"),
    "guess at another node's leaf": search(TREE.machines, "(vmkeepConflicts=[])", "1.1"),
    "delete another node's leaf": delete(FOREIGN_LEAF),
    # machines that are another's
    "take a machine over": modify(FOREIGN, Attribute.NODE, (REPLACE, "node-01.example.org")),
    "give its machine away": modify(MACHINE, Attribute.NODE, (REPLACE, "node-02.example.org")),
    "rename itself": rename(NODE, "sstNode=node-02b.example.org"),
    "make a node": add(TREE.node("evil"), "sstVirtualizationNode", sstNode="evil"),
    # what the controller or an admin says
    "begin a backup": move(LEAF, "snapshot", "merge"),
    "finish a backup": move(LEAF, "snapshot", "finished"),
    "ask for a restore": move(LEAF, "snapshot", "unretainSmallFiles"),
    "ask for a deletion": move(LEAF, "snapshot", "delete"),
    "replace a mode blindly": modify(LEAF, Attribute.MODE, (REPLACE, "snapshotting")),
    "make a leaf": add(TREE.leaf("machine-01", "20260109T030000Z"), *LEAF_CLASSES, **LEAF_VALUES),
    "make a leaf of another's": add(TREE.leaf("foreign", "20260109T030000Z"), *LEAF_CLASSES, **LEAF_VALUES),
    "delete a leaf": delete(LEAF),
    "delete an empty plan": delete(TARGETS["emptyplan"]),
    "rename a leaf": rename(LEAF, "ou=20260109T030000Z"),
    "move another's leaf to its own machine": rename(FOREIGN_LEAF, "ou=20260109T030000Z", TARGETS["plan"]),
    "move a leaf to another's machine": rename(LEAF, "ou=20260109T030000Z", TARGETS["foreignplan"]),
    "say what an entry was before": modify(LEAF, "vmkeepEntryBefore", (REPLACE, "dn: x")),
    "have its attempts counted anew": modify(LEAF, "vmkeepAttempts", (REPLACE, "0")),
    "wish for another machine's set": modify(LEAF, "vmkeepRestoreFrom", (REPLACE, "foreign")),
    "wish the last backup away": modify(LEAF, "vmkeepDeleteLast", (REPLACE, "TRUE")),
    "put a backup off": modify(LEAF, Attribute.EXECUTION_DATE, (REPLACE, "20990101")),
    "change a plan": modify(TARGETS["plan"], Attribute.ITERATIONS, (REPLACE, "0")),
    "lead all backups elsewhere": modify(TARGETS["clusterplan"], Attribute.BACKUP_ROOT, (REPLACE, "file:///mnt/evil")),
    "leave a machine out": modify(TARGETS["plan"], Attribute.EXCLUDE, (REPLACE, "TRUE")),
    "lead a disk elsewhere": modify(TARGETS["disk"], Attribute.SOURCE_FILE, (REPLACE, "/etc/shadow")),
    "give a machine a disk": add(f"sstDisk=vdz,{TARGETS['devices']}", "sstVirtualizationVirtualMachineDisk",
                                 sstDisk="vdz", sstDevice="disk", sstTargetBus="virtio", sstType="file"),
    # power
    "set its password": modify(NODE, "userPassword", (REPLACE, "x")),
    "set the controller's password": modify(TARGETS["controller"], "userPassword", (REPLACE, "x")),
    "set the admin's password another way": set_password(ADMIN),
    "read the admin's password": whole_value(ADMIN, "userPassword"),
    "guess at the admin's password": search(ADMIN, "(userPassword=*)", "1.1"),
    "give a leaf a password": modify(LEAF, "userPassword", (REPLACE, "x")),
    "make a leaf a node": modify(LEAF, "objectClass", (ADD, "extensibleObject")),
    "make a leaf a plan": modify(LEAF, "objectClass", (ADD, "sstVirtualizationBackupObjectClass")),
    "change a leaf with relaxed rules": modify(LEAF, Attribute.MODE, (REPLACE, "finished"), controls=[RELAX]),
}  # fmt: skip

OF_THE_CONTROLLER: dict[str, Attempt] = {
    "say where a machine runs": modify(MACHINE, Attribute.NODE, (REPLACE, "node-02.example.org")),
    "make a machine": add(TREE.machine("new"), "sstVirtualizationVirtualMachine", sstVirtualMachine="new",
                          sstNode="node-01.example.org", sstVirtualMachinePool="pool-01", sstDisplayName="x",
                          sstMemory="1", sstVCPU="1", sstStatus="x", sstType="kvm"),
    "remove a machine": delete(TARGETS["bare"]),
    "rename a machine": rename(TARGETS["bare"], "sstVirtualMachine=elsewhere"),
    "make a node": add(TREE.node("evil"), "sstVirtualizationNode", sstNode="evil"),
    "rename a node": rename(NODE, "sstNode=node-02b.example.org"),
    "change a machine's plan": modify(TARGETS["plan"], Attribute.ITERATIONS, (REPLACE, "0")),
    "change a pool's plan": modify(TARGETS["poolplan"], Attribute.ITERATIONS, (REPLACE, "0")),
    "change the cluster's plan": modify(TARGETS["clusterplan"], Attribute.BACKUP_ROOT, (REPLACE, "file:///mnt/evil")),
    "leave a machine out": modify(TARGETS["plan"], Attribute.EXCLUDE, (REPLACE, "TRUE")),
    "remove a plan": delete(TARGETS["emptyplan"]),
    "rename a plan": rename(TARGETS["emptyplan"], "ou=aside"),
    "take a plan to another machine": rename(TARGETS["emptyplan"], "ou=backup", TARGETS["bare"]),
    "touch what is beside the leaves": modify(TARGETS["aside"], "description", (REPLACE, "x")),
    "make a leaf among the devices": add(f"ou=20260109T030000Z,{TARGETS['devices']}", *LEAF_CLASSES,
                                         ou="20260109T030000Z", **LEAF_VALUES),
    "make somebody who can log in": add(f"ou=me,{TARGETS['devices']}", "organizationalUnit", ou="me", userPassword="x"),
    "let a device log in": modify(TARGETS["devices"], "userPassword", (REPLACE, "x")),
    "set its password": modify(TARGETS["controller"], "userPassword", (REPLACE, "x")),
    "set a node's password": modify(NODE, "userPassword", (REPLACE, "x")),
    "set the admin's password another way": set_password(ADMIN),
    "read a node's password": whole_value(NODE, "userPassword"),
    "guess at the admin's password": search(ADMIN, "(userPassword=*)", "1.1"),
}  # fmt: skip

CASES = [
    *(pytest.param("owner", attempt, id=f"a node may not {what}") for what, attempt in OF_A_NODE.items()),
    *(
        pytest.param("controller", attempt, id=f"the controller may not {what}")
        for what, attempt in OF_THE_CONTROLLER.items()
    ),
]


def everything(directory: Directory) -> dict[str, dict[str, list[bytes]]]:
    _, _, found, _ = directory.root.search(TREE.suffix, "(objectClass=*)", attributes=["*"])
    return {entry["dn"]: dict(entry["raw_attributes"]) for entry in found}


@pytest.fixture(scope="module")
def untouched(standing: Directory) -> dict[str, dict[str, list[bytes]]]:
    return everything(standing)


@pytest.mark.parametrize(("identity", "attempt"), CASES)
def test_it_is_refused_and_only_the_rules_refuse_it(
    identity: str, attempt: Attempt, directory: Directory, untouched: dict[str, dict[str, list[bytes]]]
) -> None:
    assert not directory.attempt(identity, attempt)
    assert everything(directory) == untouched
    assert attempt(directory.root), "nobody could do this: that it was refused shows nothing"
