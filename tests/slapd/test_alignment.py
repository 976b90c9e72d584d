"""Bringing a machine in line with a saved LDIF, and putting it back, on a real directory with its schema."""

from collections.abc import Iterator

import pytest

from lab.slapd import Slapd
from vmkeep.contract.names import Tree
from vmkeep.directory import open_store
from vmkeep.directory.alignment import align, changes, read_before, read_saved
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.port import Entry, Store
from vmkeep.directory.settings import DirectorySettings

MACHINE = ("top", "sstVirtualizationVirtualMachine")
DISK = ("top", "sstVirtualizationVirtualMachineDisk")


@pytest.fixture
def store(slapd: Slapd) -> Iterator[Store]:
    store = open_store(DirectorySettings(uri=slapd.uri, suffix=slapd.suffix, timeout_seconds=5))
    yield store
    store.close()


def subtree(tree: Tree, memory: str, disks: dict[str, str], **more: tuple[str, ...]) -> list[Entry]:
    own = tree.machine("m")
    values = {"sstDisplayName": ("m",), "sstMemory": (memory,), "sstVCPU": ("1",), "sstStatus": ("running",), **more}
    values |= {"sstVirtualMachinePool": ("pool",), "sstType": ("kvm",), "sstVirtualMachineType": ("persistent",)}
    return [
        Entry(own, {"objectClass": MACHINE, "sstVirtualMachine": ("m",), "sstNode": ("n1",), **values}),
        Entry(f"ou=devices,{own}", {"objectClass": ("top", "organizationalUnit"), "ou": ("devices",)}),
        *(_disk(f"sstDisk={target},ou=devices,{own}", target, path) for target, path in disks.items()),
    ]


def _disk(dn: str, target: str, path: str) -> Entry:
    kind = {"sstDevice": ("disk",), "sstTargetBus": ("virtio",), "sstType": ("file",)}
    return Entry(dn, {"objectClass": DISK, "sstDisk": (target,), "sstSourceFile": (path,), **kind})


def _shown(store: Store, base: str) -> dict[str, dict[str, list[str]]]:
    return {
        entry.dn: {name: sorted(values) for name, values in entry.attributes.items()} for entry in store.search(base)
    }


def test_a_machine_is_brought_in_line_and_put_back_to_the_letter(slapd: Slapd, store: Store) -> None:
    tree = Tree(slapd.suffix)
    own, plan = tree.machine("m"), tree.machine_plan("m")
    live = subtree(tree, "1024", {"vda": "/images/a.qcow2", "vdc": "/images/c.qcow2"})
    live.append(Entry(plan, {"objectClass": ("top", "organizationalUnit"), "ou": ("backup",)}))
    for entry in live:
        assert store.add(entry.dn, entry.attributes)
    before = _shown(store, tree.suffix)
    kept = to_ldif(store.search(own))

    edited = subtree(tree, "2048", {"vda": "/images/A.qcow2", "vdb": "/images/b.qcow2"}, sstNode=("n2",))
    saved = read_saved(to_ldif(edited), "m", tree)
    align(store, changes(saved, list(store.search(own)), "m", tree))
    assert changes(saved, list(store.search(own)), "m", tree) == ()
    machine, disk = store.read(own), store.read(f"sstDisk=vda,ou=devices,{own}")
    assert machine and (machine.first("sstMemory"), machine.first("sstNode")) == ("2048", "n1")
    assert disk and disk.first("sstSourceFile") == "/images/A.qcow2"
    assert store.read(f"sstDisk=vdb,ou=devices,{own}") is not None
    assert store.read(f"sstDisk=vdc,ou=devices,{own}") is None

    align(store, changes(read_before(kept, "m", tree), list(store.search(own)), "m", tree, exactly=True))
    assert _shown(store, tree.suffix) == before
