"""The lab's entries in the directory, as LDIF: nodes, a pool with a plan for each, machines with their disks."""

from collections.abc import Mapping, Sequence

from lab.hypervisor import Node
from lab.machines import Machine
from vmkeep.contract.names import Attribute, ObjectClass, Tree

_TYPES = {"vm-persistent": "persistent", "vm-templates": "template", "vm-dynamic": "dynamic"}


def without_cluster_paths(tree: Tree) -> str:
    """Change record: takes the three paths out of the cluster's plan, because each lab node has its own."""
    paths = (Attribute.BACKUP_ROOT, Attribute.RETAIN_ROOT, Attribute.RAM_DISK)
    return f"dn: {tree.cluster_plan}\nchangetype: modify\n" + "-\n".join(f"replace: {name}\n" for name in paths)


def node_entries(tree: Tree, node: Node) -> str:
    """The node, which is also an identity, and its machine pool, whose plan names the node's folders."""
    pool = f"{Attribute.POOL}={node.pool},{tree.pools}"
    return "\n".join(
        [
            _entry(tree.node(node.name), [ObjectClass.NODE], {Attribute.NODE: node.name}),
            _entry(pool, [ObjectClass.POOL], {Attribute.POOL: node.pool}),
            _unit(f"ou=storage pools,{pool}", "storage pools"),
            _unit(f"ou={node.storage_pool},ou=storage pools,{pool}", node.storage_pool),
            _entry(
                tree.pool_plan(node.pool),
                [ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.BACKUP],
                {
                    "ou": "backup",
                    Attribute.BACKUP_ROOT: f"file://{node.backup}",
                    Attribute.RETAIN_ROOT: f"file://{node.retain}",
                    Attribute.RAM_DISK: f"file://{node.ram}",
                },
            ),
        ]
    )


def machine_entries(tree: Tree, machine: Machine) -> str:
    """The machine and its disks; it has no plan of its own."""
    dn = tree.machine(machine.name)
    values = {
        Attribute.MACHINE: machine.name,
        Attribute.NODE: machine.node.name,
        Attribute.POOL: machine.node.pool,
        "sstDisplayName": machine.name,
        Attribute.MEMORY: str(machine.spec.memory << 20),
        "sstVCPU": "1",
        "sstStatus": machine.spec.state,
        Attribute.TYPE: "kvm",
        Attribute.MACHINE_TYPE: _TYPES.get(machine.spec.storage, "persistent"),
    }
    entries = [_entry(dn, [ObjectClass.MACHINE], values), _unit(f"ou=devices,{dn}", "devices")]
    for target, path in zip(machine.targets, machine.disks, strict=True):
        disk = {
            Attribute.DISK: target,
            Attribute.SOURCE_FILE: str(path),
            Attribute.DEVICE: "disk",
            Attribute.TYPE: "file",
            "sstTargetBus": "virtio",
            "sstDriverName": "qemu",
            "sstDriverType": "qcow2",
        }
        entries.append(_entry(f"{Attribute.DISK}={target},ou=devices,{dn}", [ObjectClass.DISK], disk))
    return "\n".join(entries)


def _unit(dn: str, name: str) -> str:
    return _entry(dn, [ObjectClass.ORGANIZATIONAL_UNIT], {"ou": name})


def _entry(dn: str, classes: Sequence[str], values: Mapping[str, str]) -> str:
    lines = [f"dn: {dn}", "objectClass: top", *(f"objectClass: {name}" for name in classes)]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in values.items()), ""])
