"""Who may read and write what: ldif/access.ldif on a real slapd, as one table, and as the table of modes has it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from threading import Event

import ldap3
import pytest
from ldap3 import Connection

from lab.slapd import REPOSITORY
from tests.slapd.identities import IDENTITIES, LEAF, MACHINE, TARGETS, TREE, Attempt, Directory
from vmkeep.contract.modes import TABLE, Actor, Kind, Mode, modes
from vmkeep.contract.names import Attribute
from vmkeep.contract.timestamps import is_timestamp
from vmkeep.directory import open_store
from vmkeep.directory.port import Claim, Equals, Store

# `owner` is the node that machine-01 runs on, `other` another node, `stranger` an entry with nothing but a password.
MATRIX = """
                                                              admin controller owner other stranger anonymous
read    leaf         sstProvisioningMode                        yes    yes      yes    -      -        -
read    leaf         objectClass                                yes    yes      yes    -      -        -
read    leaf         vmkeepMessage                              yes    yes      yes    -      -        -
read    leaf         vmkeepAttempts                             yes    yes      yes    -      -        -
read    leaf         vmkeepEntryBefore                          yes    yes      yes    -      -        -
read    leaf         vmkeepRestoreDisk                          yes    yes      yes    -      -        -
read    plan         sstBackupNumberOfIterations                yes    yes      yes    -      -        -
read    machine      sstNode                                    yes    yes      yes    -      -        -
read    machine      sstMemory                                  yes    yes      yes    -      -        -
read    devices      ou                                         yes    yes      yes    -      -        -
read    disk         sstSourceFile                              yes    yes      yes    -      -        -
read    machines     ou                                         yes    yes      yes    yes    -        -
read    pool         sstVirtualMachinePool                      yes    yes      yes    yes    -        -
read    poolplan     sstBackupNumberOfIterations                yes    yes      yes    yes    -        -
read    clusterplan  sstBackupRootDirectory                     yes    yes      yes    yes    -        -
read    nodes        ou                                         yes    yes      -      -      -        -
read    node         sstNode                                    yes    yes      yes    -      -        -
read    node         userPassword                               yes    -        -      -      -        -
read    controller   cn                                         yes    yes      -      -      -        -
read    controller   userPassword                               yes    -        -      -      -        -
read    services     ou                                         yes    yes      -      -      -        -
read    suffix       objectClass                                yes    yes      yes    yes    -        -
read    suffix       o                                          yes    yes      -      -      -        -
read    lease        cn                                         yes    yes      -      -      -        -
read    leaf         vmkeepEpoch                                yes    yes      yes    -      -        -
compare leaf         sstProvisioningMode=snapshot               yes    yes      yes    -      -        -
compare leaf         sstProvisioningState=0                     yes    yes      yes    -      -        -
compare leaf         objectClass=vmkeepLeaf                     yes    yes      yes    -      -        -
compare machine      sstMemory=1073741824                       yes    yes      yes    -      -        -

set     leaf         sstProvisioningMode=snapshotting           yes    yes      -      -      -        -
set     leaf         sstProvisioningMode=finished               yes    yes      -      -      -        -
set     leaf         sstProvisioningState=20260101T030100Z      yes    yes      yes    -      -        -
set     leaf         sstProvisioningReturnValue=5               yes    yes      yes    -      -        -
set     leaf         sstProvisioningExecutionTime=merge:_1.5    yes    yes      yes    -      -        -
set     leaf         sstProvisioningExecutionDate=20270101      yes    yes      -      -      -        -
set     leaf         vmkeepMessage=text                         yes    yes      yes    -      -        -
set     leaf         vmkeepBytesDone=1                          yes    yes      yes    -      -        -
set     leaf         vmkeepBytesTotal=1                         yes    yes      yes    -      -        -
set     leaf         vmkeepPercent=1                            yes    yes      yes    -      -        -
set     leaf         vmkeepConsistency=crash                    yes    yes      yes    -      -        -
set     leaf         vmkeepSize=1                               yes    yes      yes    -      -        -
set     leaf         vmkeepInstant=20260101T030000.5Z           yes    yes      yes    -      -        -
set     leaf         vmkeepGroup=shop                           yes    yes      -      -      -        -
set     leaf         vmkeepGroupSpread=0.5                      yes    yes      -      -      -        -
set     leaf         vmkeepGroupConsistency=consistent          yes    yes      -      -      -        -
set     leaf         vmkeepStartWait=0                          yes    yes      -      -      -        -
set     leaf         vmkeepStarted=20260101T030000.5Z           yes    yes      yes    -      -        -
set     leaf         vmkeepSetDirectory=/var/x                  yes    yes      yes    -      -        -
set     leaf         vmkeepSetNode=node-01.example.org          yes    yes      yes    -      -        -
set     leaf         vmkeepNode=node-01.example.org             yes    yes      yes    -      -        -
set     leaf         vmkeepManifestDigest=abc                   yes    yes      yes    -      -        -
set     leaf         vmkeepConflicts=[]                         yes    yes      yes    -      -        -
set     leaf         vmkeepEntry=dn:_x                          yes    yes      yes    -      -        -
set     leaf         vmkeepEntryBefore=dn:_x                    yes    yes      -      -      -        -
set     leaf         vmkeepRestoreDisk=vda                      yes    yes      -      -      -        -
set     leaf         vmkeepRestoreFrom=other                    yes    yes      -      -      -        -
set     leaf         vmkeepRestoreIsolated=TRUE                 yes    yes      -      -      -        -
set     leaf         vmkeepRestoreKeepMac=TRUE                  yes    yes      -      -      -        -
set     leaf         vmkeepKeepOld=TRUE                         yes    yes      -      -      -        -
set     leaf         vmkeepDeleteLast=TRUE                      yes    yes      -      -      -        -
set     leaf         vmkeepHold=the_audit                       yes    yes      -      -      -        -
set     leaf         vmkeepPruned=text                          yes    yes      -      -      -        -
set     leaf         vmkeepEpoch=9                              yes    yes      -      -      -        -
set     leaf         vmkeepBandwidth=9                          yes    yes      -      -      -        -
set     lease        vmkeepLeaseHolder=me                       yes    yes      -      -      -        -
set     lease        vmkeepEpoch=9                              yes    yes      -      -      -        -
set     leaf         sstRestoreVMWithoutState=TRUE              yes    yes      -      -      -        -
set     leaf         vmkeepAttempts=1                           yes    yes      -      -      -        -
set     leaf         description=text                           yes    yes      -      -      -        -
class   plainleaf    +vmkeepLeaf                                yes    yes      yes    -      -        -
class   vmkeepleaf   -vmkeepLeaf                                yes    yes      -      -      -        -
class   leaf         +sstVirtualizationBackupObjectClass        yes    yes      -      -      -        -
set     plan         sstBackupExcludeFromBackup=TRUE            yes    -        -      -      -        -
set     plan         sstBackupRootDirectory=file:///etc         yes    -        -      -      -        -
set     machine      sstNode=node-02.example.org                yes    -        -      -      -        -
gain    machine      sstVirtualMachine=second                   yes    -        -      -      -        -
set     machine      sstMemory=2147483648                       yes    yes      -      -      -        -
set     foreign      sstNode=node-01.example.org                yes    -        -      -      -        -
set     foreign      sstMemory=2147483648                       yes    yes      -      -      -        -
set     machine      sstDisplayName=text                        yes    yes      -      -      -        -
class   machine      +sstVirtualizationBackupObjectClass        yes    yes      -      -      -        -
set     devices      description=text                           yes    yes      -      -      -        -
set     disk         sstSourceFile=/etc/shadow                  yes    yes      -      -      -        -
set     devices      userPassword=secret                        yes    -        -      -      -        -
set     aside        description=text                           yes    -        -      -      -        -
gain    plan         ou=other                                   yes    -        -      -      -        -
read    foreignleaf  vmkeepConflicts                            yes    yes      -      yes    -        -
set     foreignleaf  vmkeepConflicts=[]                         yes    yes      -      yes    -        -
set     foreignleaf  vmkeepEntry=dn:_x                          yes    yes      -      yes    -        -
set     foreignleaf  vmkeepEntryBefore=dn:_x                    yes    yes      -      -      -        -
set     foreignleaf  sstProvisioningReturnValue=5               yes    yes      -      yes    -        -
class   suffix       +sstVirtualizationBackupObjectClass        yes    -        -      -      -        -
set     machines     description=text                           yes    -        -      -      -        -
set     poolplan     sstBackupNumberOfIterations=9              yes    -        -      -      -        -
set     clusterplan  sstBackupNumberOfIterations=9              yes    -        -      -      -        -
set     clusterplan  sstCronActive=TRUE                         yes    -        -      -      -        -
class   node         +sstVirtualizationBackupObjectClass        yes    -        -      -      -        -
set     node         userPassword=secret                        yes    -        -      -      -        -
set     controller   userPassword=secret                        yes    -        -      -      -        -
set     controller   description=text                           yes    -        -      -      -        -

add     bare         ou=backup                                  yes    yes      -      -      -        -
add     bare         ou=other                                   yes    yes      -      -      -        -
login   bare         ou=other                                   yes    -        -      -      -        -
add     devices      ou=other                                   yes    yes      -      -      -        -
login   devices      ou=other                                   yes    -        -      -      -        -
add     devices      ou=20260102T030000Z                        yes    -        -      -      -        -
add     aside        ou=other                                   yes    -        -      -      -        -
add     foreign      ou=other                                   yes    yes      -      -      -        -
add     bare         ou=other+backup                            yes    -        -      -      -        -
add     bare         ou=20260102T030000Z                        yes    -        -      -      -        -
add     plan         ou=20260102T030000Z                        yes    yes      -      -      -        -
add     plan         ou=other                                   yes    -        -      -      -        -
add     devices      ou=backup                                  yes    -        -      -      -        -
add     leaf         ou=20260102T030000Z                        yes    -        -      -      -        -
add     machines     ou=backup                                  yes    -        -      -      -        -
add     configuration ou=other                                  yes    -        -      -      -        -
add     nodes        ou=other                                   yes    -        -      -      -        -
add     poolplan     ou=20260102T030000Z                        yes    -        -      -      -        -
delete  leaf         -                                          yes    yes      -      -      -        -
delete  disk         -                                          yes    yes      -      -      -        -
delete  emptydevices -                                          yes    yes      -      -      -        -
delete  aside        -                                          yes    -        -      -      -        -
delete  emptyplan    -                                          yes    -        -      -      -        -
delete  bare         -                                          yes    -        -      -      -        -
delete  lease        -                                          yes    -        -      -      -        -
rename  lease        cn=elsewhere                               yes    -        -      -      -        -
rename  leaf         ou=20260103T030000Z                        yes    yes      -      -      -        -
rename  plan         ou=elsewhere                               yes    -        -      -      -        -
rename  machine      sstVirtualMachine=renamed                  yes    -        -      -      -        -
rename  disk         sstDisk=vdz                                yes    yes      -      -      -        -
"""


@dataclass(frozen=True)
class Case:
    """One cell of the table: an attempt, who makes it, and whether it goes through."""

    verb: str
    target: str
    what: str
    identity: str
    allowed: bool

    def __str__(self) -> str:
        return f"{self.identity}-{'may' if self.allowed else 'may_not'}-{self.verb}-{self.target}-{self.what}"


def _cases() -> Iterator[Case]:
    for line in filter(str.strip, MATRIX.splitlines()[2:]):
        verb, target, what, *cells = line.split()
        for identity, cell in zip(IDENTITIES, cells, strict=True):
            yield Case(verb, target, what, identity, cell == "yes")


def _read(client: Connection, dn: str, attribute: str) -> bool:
    _, _, found, _ = client.search(dn, "(objectClass=*)", ldap3.BASE, attributes=[attribute])
    return bool(found and found[0]["raw_attributes"].get(attribute))


def _compare(client: Connection, dn: str, what: str) -> bool:
    attribute, _, value = what.partition("=")
    return bool(client.compare(dn, attribute, value)[0])


def _set(client: Connection, dn: str, what: str) -> bool:
    attribute, _, value = what.partition("=")
    return _modified(client, dn, {attribute: [(ldap3.MODIFY_REPLACE, [value])]})


def _class(client: Connection, dn: str, what: str) -> bool:
    change = ldap3.MODIFY_ADD if what.startswith("+") else ldap3.MODIFY_DELETE
    return _modified(client, dn, {"objectClass": [(change, [what[1:]])]})


def _add(client: Connection, above: str, what: str) -> bool:
    names = what.removeprefix("ou=").split("+")
    attributes: dict[str, list[str]] = {"objectClass": ["organizationalUnit"], "ou": names}
    if is_timestamp(names[0]):
        attributes["objectClass"].append("sstProvisioning")
        attributes |= {Attribute.MODE: ["initialize"], Attribute.STATE: ["0"], Attribute.EXECUTION_DATE: ["0"]}
    return bool(client.add(f"ou={names[0]},{above}", attributes=attributes)[0])


def _login(client: Connection, above: str, what: str) -> bool:
    """An entry that somebody could log in as."""
    name = what.removeprefix("ou=")
    attributes = {"objectClass": ["organizationalUnit"], "ou": [name], "userPassword": ["secret"]}
    return bool(client.add(f"ou={name},{above}", attributes=attributes)[0])


def _gain(client: Connection, dn: str, what: str) -> bool:
    attribute, _, value = what.partition("=")
    return _modified(client, dn, {attribute: [(ldap3.MODIFY_ADD, [value])]})


def _modified(client: Connection, dn: str, changes: dict[str, list[tuple[str, list[str]]]]) -> bool:
    return bool(client.modify(dn, changes)[0])


def _moved(before: str, after: str) -> Attempt:
    """A claim as protocol and edits make it: the old mode named, the new one added."""
    changes = [(ldap3.MODIFY_DELETE, [before]), (ldap3.MODIFY_ADD, [after])]
    return lambda client: _modified(client, LEAF, {Attribute.MODE: changes})


ATTEMPTS: dict[str, Callable[[Connection, str, str], bool]] = {
    "read": _read,
    "compare": _compare,
    "set": _set,
    "class": _class,
    "add": _add,
    "login": _login,
    "gain": _gain,
    "delete": lambda client, dn, _: bool(client.delete(dn)[0]),
    "rename": lambda client, dn, name: bool(client.modify_dn(dn, name)[0]),
}


@pytest.fixture
def store(directory: Directory, request: pytest.FixtureRequest) -> Iterator[Store]:
    """The project's own store, as one of the identities."""
    store = open_store(directory.settings(request.param))
    yield store
    store.close()


as_owner = pytest.mark.parametrize("store", ["owner"], indirect=True)
as_other = pytest.mark.parametrize("store", ["other"], indirect=True)


@pytest.mark.parametrize("case", list(_cases()), ids=str)
def test_the_matrix(directory: Directory, case: Case) -> None:
    attempt = ATTEMPTS[case.verb]

    assert (
        directory.attempt(case.identity, lambda client: attempt(client, TARGETS[case.target], case.what))
        is case.allowed
    )


def _moves(directory: Directory, identity: str) -> set[tuple[Mode, Mode]]:
    """Every move between two modes that an identity gets through, sensible or not."""
    through = set()
    for before, after in product(Mode, Mode):
        directory.root.modify(LEAF, {Attribute.MODE: [(ldap3.MODIFY_REPLACE, [before])]})
        if directory.attempt(identity, _moved(before, after)):
            through.add((before, after))
    return through


def test_a_node_moves_its_leaf_to_its_own_modes_from_these_or_from_what_it_was_asked_for(directory: Directory) -> None:
    own = set(modes(writer=Actor.AGENT))
    startable = own | set(modes(kind=Kind.IMPERATIVE))

    assert _moves(directory, "owner") == set(product(startable, own))


def test_a_node_can_make_every_move_of_its_own_in_the_table_of_modes(directory: Directory) -> None:
    for row in TABLE:
        for before in row.follows if row.writer is Actor.AGENT else ():
            directory.root.modify(LEAF, {Attribute.MODE: [(ldap3.MODIFY_REPLACE, [before])]})
            assert directory.attempt("owner", _moved(before, row.mode)), f"{before} to {row.mode}"


def test_no_other_node_moves_a_leaf_anywhere(directory: Directory) -> None:
    assert _moves(directory, "other") == set()


def test_the_controller_moves_a_leaf_anywhere(directory: Directory) -> None:
    assert _moves(directory, "controller") == set(product(Mode, Mode))


def test_a_mode_written_in_another_case_can_be_claimed(directory: Directory) -> None:
    directory.root.modify(LEAF, {Attribute.MODE: [(ldap3.MODIFY_REPLACE, ["SnapShot"])]})

    assert directory.attempt("owner", _moved("SnapShot", "snapshotting"))


@as_owner
def test_a_node_claims_a_leaf_made_by_hand_with_everything_it_has_to_say(directory: Directory, store: Store) -> None:
    dn = TARGETS["plainleaf"]
    expected = {Attribute.MODE: "snapshot", Attribute.STATE: "0"}
    said = {Attribute.MODE: ["snapshotting"], Attribute.STATE: ["0"], Attribute.RETURN_VALUE: ["0"]}

    ours = {Attribute.MESSAGE: ["at work"], Attribute.PERCENT: ["1"]}
    claim = store.claim(dn, expected, said | ours, {"objectClass": ["vmkeepLeaf"]})

    assert claim is Claim.WON


@as_owner
def test_a_node_reads_its_own_machines_whole(store: Store) -> None:
    seen = {entry.dn for entry in store.search(TREE.machines)}

    assert {TARGETS[name] for name in ("machines", "machine", "devices", "disk", "plan", "leaf", "bare")} <= seen


@as_other
def test_a_node_finds_nothing_of_other_nodes(store: Store) -> None:
    seen = [entry.dn for entry in store.search(TREE.machines)]

    assert all(dn == TREE.machines or dn.endswith(TARGETS["foreign"]) for dn in seen)
    assert store.read(LEAF) is None


@as_owner
def test_nothing_a_node_reads_holds_a_password(store: Store) -> None:
    assert [entry.dn for entry in store.search(TREE.suffix) if entry.all("userPassword")] == []


def test_the_name_of_a_node_compares_without_case(directory: Directory) -> None:
    directory.root.modify(MACHINE, {Attribute.NODE: [(ldap3.MODIFY_REPLACE, ["NODE-01.Example.org"])]})

    assert directory.attempt("owner", _moved("snapshot", "snapshotting"))


def test_a_machine_that_moves_to_another_node_is_that_nodes(directory: Directory) -> None:
    claim = _moved("snapshot", "snapshotting")
    for node, owner_may in (("node-02.example.org", False), ("node-01.example.org", True)):
        directory.root.modify(MACHINE, {Attribute.NODE: [(ldap3.MODIFY_REPLACE, [node])]})
        assert directory.attempt("owner", claim) is owner_may


@pytest.mark.parametrize(("store", "hears"), [("owner", True), ("other", False)], indirect=["store"])
def test_a_watching_node_hears_of_its_own_leaves_and_of_their_end(
    directory: Directory, store: Store, hears: bool
) -> None:
    woken = Event()
    with store.watch(TREE.machines, Equals("objectClass", "sstProvisioning"), woken.set) as watch:
        assert woken.wait(5)
        assert watch.kind == "sync"
        woken.clear()
        changed = {Attribute.RETURN_VALUE: [(ldap3.MODIFY_REPLACE, ["7"])]}
        for change in (
            lambda: directory.root.modify(TARGETS["plainleaf"], changed),
            lambda: directory.root.delete(TARGETS["plainleaf"]),
        ):
            change()
            assert woken.wait(5 if hears else 0.3) is hears
            woken.clear()


@pytest.mark.parametrize("identity", ["admin", "controller", "owner"])
def test_the_size_limit_cuts_none_of_them_off(directory: Directory, identity: str) -> None:
    database = "dn: olcDatabase={1}mdb,cn=config\nchangetype: modify\nreplace: olcSizeLimit\n"
    directory.server.modify(f"{database}olcSizeLimit: 2\n")
    _, _, found, _ = directory.identities[identity].search(TREE.machines, "(objectClass=*)")
    directory.server.modify(database)

    assert len(found) > 2


@pytest.mark.parametrize("identity", IDENTITIES)
def test_the_controller_adds_the_lease_where_it_is_missing(directory: Directory, identity: str) -> None:
    lease = {"objectClass": ["vmkeepLease"], "cn": ["lease"]}
    directory.root.delete(TREE.lease)

    was_added = directory.attempt(identity, lambda client: bool(client.add(TREE.lease, attributes=lease)[0]))

    assert was_added is (identity in ("admin", "controller"))


NOT_THE_NODES = {
    *(Attribute.ATTEMPTS, Attribute.ENTRY_BEFORE, Attribute.BANDWIDTH),  # the controller's
    # what an admin wishes for
    *(Attribute.RESTORE_DISK, Attribute.RESTORE_FROM, Attribute.RESTORE_ISOLATED, Attribute.RESTORE_KEEP_MAC),
    *(Attribute.KEEP_OLD, Attribute.DELETE_LAST),
    Attribute.OVERLAY_LIMIT,
    Attribute.BANDWIDTH_COPY,
    Attribute.FREEZE_SECONDS,
    Attribute.DEADLINE,
    *(Attribute.GROUP, Attribute.WINDOW, Attribute.START_WAIT),
    *(Attribute.GROUP_SPREAD, Attribute.GROUP_CONSISTENCY),  # the controller's
    Attribute.PROMISE,
    *(Attribute.KEEP, Attribute.HOLD, Attribute.PRUNED),
    # which controller acts
    *(Attribute.EPOCH, Attribute.LEASE_HOLDER, Attribute.LEASE_VERSION, Attribute.LEASE_SINCE, Attribute.LEASE_SECONDS),
}


def test_the_rules_name_every_attribute_of_ours_that_a_node_may_write() -> None:
    rules = (REPOSITORY / "ldif/access.ldif").read_text().replace("\n ", "")
    ours = {name for name in Attribute if name.startswith("vmkeep")} - NOT_THE_NODES

    assert {name for name in re.findall(r"vmkeep[A-Z]\w+", rules) if name != "vmkeepLeaf"} == ours
