"""`vmkeep rebuild-catalogue`, on a real slapd: what the directory lost comes back from the sets."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from lab.slapd import SlapdOptions
from tests.backup_root import digest, make_set
from tests.conftest import SlapdFactory
from tests.slapd.cluster_of_peers import ClusterOfPeers
from tests.slapd.console_driver import exists, vmkeep
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.ldif_text import to_ldif

OLD, NEW = "20260101T000000Z", "20260102T000000Z"
_numbers = count()


@pytest.fixture(scope="module")
def cluster(slapd_factory: SlapdFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfPeers]:
    cluster = ClusterOfPeers(slapd_factory(SlapdOptions(synchronous=False)), tmp_path_factory.mktemp("console"))
    yield cluster
    cluster.close()


@pytest.fixture
def machine(cluster: ClusterOfPeers) -> str:
    """A machine with a disk and a plan of its own, and no leaf."""
    name = f"r{next(_numbers)}"
    cluster.add_machines([name])
    dn = cluster.tree.machine(name)
    cluster.slapd.add(f"dn: ou=devices,{dn}\nobjectClass: organizationalUnit\nou: devices\n")
    disk = "sstDisk: vda\nsstDevice: disk\nsstTargetBus: virtio\nsstType: file\nsstSourceFile: /images/a.qcow2\n"
    classes = "objectClass: sstVirtualizationVirtualMachineDisk\n"
    cluster.slapd.add(f"dn: sstDisk=vda,ou=devices,{dn}\n{classes}{disk}")
    cluster.set(cluster.tree.machine_plan(name), sstBackupNumberOfIterations="7")
    return name


def saved(cluster: ClusterOfPeers, machine: str) -> bytes:
    store = cluster.store(cluster.slapd.identities["controller"])
    try:
        return to_ldif(Catalogue(store, cluster.tree).subtree(machine)).encode()
    finally:
        store.close()


def entries(cluster: ClusterOfPeers, machine: str) -> dict[str, dict[str, list[str]]]:
    dn = cluster.tree.machine(machine)
    return {entry["dn"][0]: entry for entry in cluster.slapd.search(dn)} if exists(cluster, dn) else {}


def remove(cluster: ClusterOfPeers, dn: str) -> None:
    for entry in sorted(cluster.slapd.search(dn), key=lambda entry: -len(entry["dn"][0])):
        cluster.slapd.delete(entry["dn"][0])


def rebuild(cluster: ClusterOfPeers, root: Path, *more: str):
    return vmkeep(cluster, "rebuild-catalogue", str(root), *more)


def test_a_machine_that_is_gone_comes_back_whole_with_its_leaves(
    cluster: ClusterOfPeers, machine: str, tmp_path: Path
) -> None:
    before = entries(cluster, machine)
    old = make_set(tmp_path, machine, OLD, b"dn: of another time\n")
    new = make_set(tmp_path, machine, NEW, saved(cluster, machine))
    remove(cluster, cluster.tree.machine(machine))
    ended = rebuild(cluster, tmp_path)
    assert ended.code == 0, ended
    assert "2 sets of 1 machines: 3 entries, 1 ou=backup, 2 leaves written" in ended.out
    after = entries(cluster, machine)
    assert {dn: after[dn] for dn in before} == before
    for timestamp, folder in ((OLD, old), (NEW, new)):
        leaf = after[cluster.tree.leaf(machine, timestamp)]
        assert leaf["sstProvisioningMode"] == ["finished"]
        assert (leaf["sstProvisioningState"], leaf["sstProvisioningReturnValue"]) == ([timestamp], ["0"])
        assert leaf["vmkeepSetDirectory"] == [str(folder)]
        text = (folder / f"manifest.json.{timestamp}").read_bytes()
        assert leaf["vmkeepManifestDigest"] == [digest(text)]
        assert leaf["vmkeepConsistency"] == ["state"]
    assert f"{NEW} " in vmkeep(cluster, "status", machine).out


def test_a_second_call_writes_nothing(cluster: ClusterOfPeers, machine: str, tmp_path: Path) -> None:
    make_set(tmp_path, machine, NEW, saved(cluster, machine))
    rebuild(cluster, tmp_path)
    before = cluster.context_csn()
    ended = rebuild(cluster, tmp_path)
    assert (ended.code, cluster.context_csn()) == (0, before), ended
    assert "0 leaves written; 1 there already" in ended.out


def test_a_rehearsal_says_what_would_be_written_and_writes_nothing(
    cluster: ClusterOfPeers, machine: str, tmp_path: Path
) -> None:
    make_set(tmp_path, machine, NEW, saved(cluster, machine))
    remove(cluster, cluster.tree.machine(machine))
    before = cluster.context_csn()
    ended = rebuild(cluster, tmp_path, "--dry-run")
    assert (ended.code, cluster.context_csn()) == (0, before), ended
    assert f"{machine}: would add {cluster.tree.leaf(machine, NEW)}" in ended.out
    assert "3 entries, 1 ou=backup, 1 leaves would be written" in ended.out


def test_what_is_there_stays_as_it_is(cluster: ClusterOfPeers, machine: str, tmp_path: Path) -> None:
    make_set(tmp_path, machine, NEW, saved(cluster, machine))
    cluster.add_leaf(machine, NEW, "retaining", "20260102T000100Z", sstProvisioningReturnValue="8")
    cluster.set(cluster.tree.machine(machine), sstDisplayName="newer")
    before = entries(cluster, machine)
    assert rebuild(cluster, tmp_path).code == 0
    assert entries(cluster, machine) == before


def test_a_missing_backup_subtree_comes_back_empty_below_a_machine_that_is_there(
    cluster: ClusterOfPeers, machine: str, tmp_path: Path
) -> None:
    make_set(tmp_path, machine, NEW)
    remove(cluster, cluster.tree.machine_plan(machine))
    ended = rebuild(cluster, tmp_path)
    assert "0 entries, 1 ou=backup, 1 leaves written" in ended.out
    assert "sstBackupNumberOfIterations" not in entries(cluster, machine)[cluster.tree.machine_plan(machine)]


def test_an_older_set_helps_where_the_newest_cannot_be_trusted(
    cluster: ClusterOfPeers, machine: str, tmp_path: Path
) -> None:
    text = saved(cluster, machine)
    make_set(tmp_path, machine, OLD, text)
    spoiled = make_set(tmp_path, machine, NEW, text)
    (spoiled / f"{machine}.ldif.{NEW}").write_bytes(text.replace(b"a.qcow2", b"b.qcow2"))
    remove(cluster, cluster.tree.machine(machine))
    ended = rebuild(cluster, tmp_path)
    assert ended.code == 3, ended
    assert f"{machine}: the set {spoiled}" in ended.err
    assert exists(cluster, cluster.tree.leaf(machine, NEW))
    disk = entries(cluster, machine)[f"sstDisk=vda,ou=devices,{cluster.tree.machine(machine)}"]
    assert disk["sstSourceFile"] == ["/images/a.qcow2"]


def test_one_machine_that_is_refused_does_not_stop_the_others(
    cluster: ClusterOfPeers, machine: str, tmp_path: Path
) -> None:
    make_set(tmp_path, "a-bad-one", NEW, b"dn: cn=admin,dc=example,dc=org\nobjectClass: top\n")
    make_set(tmp_path, machine, NEW, saved(cluster, machine))
    ended = rebuild(cluster, tmp_path)
    assert ended.code == 3, ended
    assert "a-bad-one: its entry is gone and no set holds one that may be written back" in ended.err
    assert not exists(cluster, cluster.tree.machine("a-bad-one"))
    assert exists(cluster, cluster.tree.leaf(machine, NEW))


def test_the_controllers_login_is_told_to_be_the_admin(cluster: ClusterOfPeers, machine: str, tmp_path: Path) -> None:
    make_set(tmp_path, machine, NEW, saved(cluster, machine))
    remove(cluster, cluster.tree.machine(machine))
    as_controller = ("--settings", str(cluster.settings_file("controller")))
    ended = cluster.run(*as_controller, "rebuild-catalogue", str(tmp_path), program="vmkeep")
    assert ended.code == 3, ended
    assert f"{machine}: the directory " in ended.err
    assert "log in as the admin (bind_dn and password_file below [directory]" in ended.err
    assert not exists(cluster, cluster.tree.machine(machine))


def test_one_machine_alone_is_rebuilt_when_it_is_named(cluster: ClusterOfPeers, machine: str, tmp_path: Path) -> None:
    make_set(tmp_path, machine, NEW, saved(cluster, machine))
    make_set(tmp_path, "another", NEW)
    ended = rebuild(cluster, tmp_path, "--machine", machine)
    assert ended.code == 0, ended
    assert "1 sets of 1 machines" in ended.out


def test_a_thousand_leaves_come_back(cluster: ClusterOfPeers, tmp_path: Path) -> None:
    names = [f"many{number}" for number in range(100)]
    cluster.add_machines(names)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for name in names:
        for hour in range(10):
            make_set(tmp_path, name, to_timestamp(start + timedelta(hours=hour)))
    ended = rebuild(cluster, tmp_path)
    assert ended.code == 0, ended
    assert "1000 sets of 100 machines: 0 entries, 0 ou=backup, 1000 leaves written" in ended.out
