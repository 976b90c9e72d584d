"""A slapd with the example machines, and somebody logged in as each identity; for the tests of access."""

from collections.abc import Callable, Iterator

import ldap3
from ldap3 import Connection
from ldap3.core.exceptions import LDAPOperationResult

from lab.slapd import REPOSITORY, Slapd
from vmkeep.contract.names import Tree
from vmkeep.directory.settings import DirectorySettings

Attempt = Callable[[Connection], bool]
TREE = Tree("dc=example,dc=org")
MACHINE = TREE.machine("machine-01")
BARE = TREE.machine("bare")  # a machine of the same node that has no ou=backup
TIMESTAMP = "20260101T030000Z"
LEAF = TREE.leaf("machine-01", TIMESTAMP)
STRANGER = f"cn=stranger,ou=administration,{TREE.suffix}"
NODE = TREE.node("node-01.example.org")
TARGETS = {
    "leaf": LEAF,
    "plainleaf": TREE.leaf("machine-01", "20260101T040000Z"),  # made by hand, without our class
    "vmkeepleaf": TREE.leaf("machine-01", "20260101T050000Z"),  # with our class and none of its attributes
    "plan": TREE.machine_plan("machine-01"),
    "machine": MACHINE,
    "bare": BARE,
    "emptyplan": TREE.machine_plan("empty"),
    "devices": f"ou=devices,{MACHINE}",
    "disk": f"sstDisk=vda,ou=devices,{MACHINE}",
    "emptydevices": f"ou=devices,{TREE.machine('empty')}",
    "aside": f"ou=aside,{TREE.machine_plan('machine-01')}",  # an admin's own entry beside the leaves
    "foreign": TREE.machine("foreign"),  # a machine of the other node
    "foreignleaf": TREE.leaf("foreign", TIMESTAMP),
    "foreignplan": TREE.machine_plan("foreign"),
    "machines": TREE.machines,
    "pool": f"sstVirtualMachinePool=pool-01,{TREE.pools}",
    "poolplan": TREE.pool_plan("pool-01"),
    "clusterplan": TREE.cluster_plan,
    "configuration": TREE.configuration,
    "lease": TREE.lease,
    "nodes": TREE.nodes,
    "node": NODE,
    "controller": f"cn=controller,ou=administration,{TREE.suffix}",
    "services": f"ou=services,{TREE.suffix}",
    "suffix": TREE.suffix,
}
DENIALS = (8, 32, 50)  # strongAuthRequired (nobody logged in), noSuchObject (invisible), insufficientAccessRights
IDENTITIES = ("admin", "controller", "owner", "other", "stranger", "anonymous")


class Directory:
    """A slapd with the example machines, a connection for each identity, and a way back to the tree as it was."""

    def __init__(self, server: Slapd) -> None:
        self.server = server
        for text in _entries_of_the_tree():
            server.add(text)
        for name, dn in (("owner", NODE), ("other", TREE.node("node-02.example.org")), ("stranger", STRANGER)):
            server.give_password(name, dn)
        self.root = self._connected(authentication=ldap3.SASL, sasl_mechanism=ldap3.EXTERNAL, sasl_credentials="")
        self.identities = {name: self._connected(**self._login(name)) for name in IDENTITIES}
        self._original = self._entries()

    def attempt(self, identity: str, attempt: Attempt) -> bool:
        """Make an attempt, and say whether it went through. What else goes wrong than access is raised."""
        try:
            return attempt(self.identities[identity])
        except LDAPOperationResult as refusal:
            if refusal.result not in DENIALS:
                raise
            return False

    def settings(self, identity: str) -> DirectorySettings:
        """What one of vmkeep's own programs would be set up with."""
        who = self.server.identities[identity]
        login = {"bind_dn": who.dn, "password_file": who.password_file}
        return DirectorySettings.model_validate({"uri": self.server.uri, "suffix": TREE.suffix, **login})

    def _login(self, name: str) -> dict[str, str]:
        if name == "anonymous":
            return {}
        identity = self.server.identities[name]
        return {"user": identity.dn, "password": identity.password_file.read_text()}

    def _connected(self, **login: str) -> Connection:
        server = ldap3.Server(self.server.uri, get_info=ldap3.NONE)
        return Connection(server, client_strategy=ldap3.SAFE_SYNC, raise_exceptions=True, auto_bind=True, **login)

    def _entries(self) -> dict[str, dict[str, list[bytes]]]:
        _, _, found, _ = self.root.search(TREE.suffix, "(objectClass=*)", attributes=["*"])
        return {entry["dn"]: dict(entry["raw_attributes"]) for entry in found}

    def restore(self) -> None:
        """Bring every entry back to what it was."""
        now = self._entries()
        for dn in sorted(now.keys() - self._original.keys(), key=len, reverse=True):
            self.root.delete(dn)
        for dn in sorted(self._original.keys() - now.keys(), key=len):
            self.root.add(dn, attributes=self._original[dn])
        for dn in self._original.keys() & now.keys():
            before, after = self._original[dn], now[dn]
            changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
            if changed:
                self.root.modify(dn, {name: [(ldap3.MODIFY_REPLACE, before.get(name, []))] for name in changed})


def _entries_of_the_tree() -> Iterator[str]:
    """One more node, machines without and with an empty ou=backup, and leaves of each kind."""
    node, machine = ((REPOSITORY / f"ldif/{name}.ldif").read_text() for name in ("node", "machine"))
    yield node
    yield node.replace("node-01", "node-02")
    yield f"dn: {STRANGER}\nobjectClass: organizationalRole\ncn: stranger\n"
    yield machine
    entry = next(text for text in machine.split("\n\n") if text.startswith(f"dn: {MACHINE}"))
    yield entry.replace("machine-01", "bare")
    yield entry.replace("machine-01", "empty")
    plan = "objectClass: organizationalUnit\nobjectClass: sstVirtualizationBackupObjectClass\nou: backup\n"
    yield entry.replace("machine-01", "foreign").replace("node-01", "node-02")
    yield f"dn: {TARGETS['emptydevices']}\nobjectClass: organizationalUnit\nou: devices\n"
    yield f"dn: {TARGETS['emptyplan']}\n{plan}"
    yield f"dn: {TARGETS['foreignplan']}\n{plan}"
    yield f"dn: {TARGETS['plan']}\n{plan}sstBackupNumberOfIterations: 3\n"
    yield f"dn: {TARGETS['aside']}\nobjectClass: organizationalUnit\nou: aside\n"
    work = "objectClass: organizationalUnit\nobjectClass: sstProvisioning\nsstProvisioningExecutionDate: 0\n"
    work += "sstProvisioningMode: snapshot\nsstProvisioningState: 0\nsstProvisioningReturnValue: 0\n"
    yield f"dn: {LEAF}\n{work}objectClass: vmkeepLeaf\nvmkeepMessage: text\nvmkeepAttempts: 2\nvmkeepEpoch: 1\n" + (
        "vmkeepEntryBefore: dn: x\nvmkeepRestoreDisk: vda\n"
    )
    yield f"dn: {TARGETS['vmkeepleaf']}\n{work}objectClass: vmkeepLeaf\n"
    yield f"dn: {TARGETS['plainleaf']}\n{work}"
    yield f"dn: {TARGETS['foreignleaf']}\n{work}objectClass: vmkeepLeaf\nvmkeepConflicts: []\n"
