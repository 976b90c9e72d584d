"""A set restored beside its machine, under another name: the new entry and its leaf, and both taken back again.

Called by `restore --as`, and by `abort` for what is left of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vmkeep.console.rights import needing_the_admin
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import NOW, Leaf
from vmkeep.contract.machine import check_name
from vmkeep.contract.modes import Mode
from vmkeep.contract.names import Attribute, ObjectClass
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.port import Attributes, Entry, Scope

_DISPLAY_NAME = "sstDisplayName"
_COPIED = ("objectclass", "description")


@dataclass(frozen=True)
class NewMachine:
    """What is wished for: the name, and how it meets the network."""

    name: str
    keep_mac: bool = False
    isolated: bool = False


def begin(catalogue: Catalogue, source: Leaf, new: NewMachine) -> tuple[Leaf, bool]:
    """Add the new machine's entry, its ou=backup and a leaf that asks for the small files; or find them begun.

    Returns the leaf, and whether it is new. Refused where a machine of that name exists, unless an earlier attempt at
    the same restore left it behind.
    """
    check_name(new.name)
    entry = catalogue.store.read(catalogue.tree.machine(source.machine))
    if entry is None:
        raise Refused(ReturnValue.CANNOT_FIND_MACHINE, f"{source.machine}: its entry is gone")
    begun = _begun(catalogue, source, new)
    if begun:
        return begun, False
    dn = catalogue.tree.leaf(new.name, source.timestamp)
    with needing_the_admin(new.name):
        catalogue.store.add(catalogue.tree.machine(new.name), _entry(entry, new.name))
        catalogue.add_backup_subtree(new.name)
        catalogue.store.add(dn, _leaf(source, new))
    leaf = catalogue.leaf(dn)
    if leaf is None:
        raise Refused(ReturnValue.CANNOT_LOCK_MACHINE, f"{new.name}: {dn} went away as soon as it was made; try again")
    return leaf, True


def take_back(catalogue: Catalogue, leaf: Leaf) -> str:
    """Remove a leaf that nobody works at, and what `begin` made for it; the sentence says what stayed."""
    name, tree = leaf.machine, catalogue.tree
    with needing_the_admin(name):
        catalogue.store.delete(leaf.dn)
        entry = catalogue.store.read(tree.machine(name))
        if entry is None or not _is_bare(catalogue, entry, name) or list(catalogue.leaves(name)):
            return f"{name}: the leaf {leaf.timestamp} is removed; its entry stays: it holds more than this made"
        catalogue.store.delete(tree.machine_plan(name))
        catalogue.store.delete(tree.machine(name))
    return f"{name}: backed out; its leaf and its entry are removed, and the agent clears retain"


def _begun(catalogue: Catalogue, source: Leaf, new: NewMachine) -> Leaf | None:
    """The leaf of an earlier attempt; None where there is nothing yet, or an entry without a leaf."""
    entry = catalogue.store.read(catalogue.tree.machine(new.name))
    if entry is None:
        return None
    leaves = list(catalogue.leaves(new.name))
    if not leaves and _is_bare(catalogue, entry, new.name):
        return None
    if len(leaves) == 1 and _is_same(leaves[0], source, new):
        return leaves[0]
    raise Refused(
        ReturnValue.CANNOT_LOCK_MACHINE,
        f"{new.name}: there is a machine of this name already ({entry.dn}); choose another for --as"
        + (f", or `vmkeep abort {new.name}`" if any(leaf.is_in_restore for leaf in leaves) else ""),
    )


def _is_same(leaf: Leaf, source: Leaf, new: NewMachine) -> bool:
    wishes = leaf.wishes
    asked = (source.machine.casefold(), source.timestamp, new.isolated, new.keep_mac)
    return leaf.is_in_restore and asked == (
        *(wishes.original.casefold(), leaf.timestamp),
        *(wishes.isolated, wishes.keep_mac),
    )


def _is_bare(catalogue: Catalogue, entry: Entry, name: str) -> bool:
    """Whether an entry is as `begin` makes it: named so by it, and nothing below but ou=backup."""
    children: Sequence[Entry] = list(catalogue.store.search(entry.dn, scope=Scope.CHILDREN, attributes=["ou"]))
    only_backup = all((child.first("ou") or "").casefold() == "backup" for child in children)
    return only_backup and entry.first(_DISPLAY_NAME) == name


def _entry(original: Entry, name: str) -> Attributes:
    copied = {
        key: values
        for key, values in original.attributes.items()
        if key.casefold().startswith("sst") or key.casefold() in _COPIED
    }
    own = {Attribute.MACHINE.casefold(): (name,), _DISPLAY_NAME.casefold(): (name,)}
    return {key: own.get(key.casefold(), values) for key, values in copied.items()} | {_DISPLAY_NAME: (name,)}


def _leaf(source: Leaf, new: NewMachine) -> Attributes:
    wishes = {
        Attribute.SET_DIRECTORY: source.set_directory,
        Attribute.MANIFEST_DIGEST: source.manifest_digest,
        Attribute.RESTORE_ISOLATED: "TRUE" if new.isolated else "",
        Attribute.RESTORE_KEEP_MAC: "TRUE" if new.keep_mac else "",
    }
    return {
        "objectClass": ("top", ObjectClass.ORGANIZATIONAL_UNIT, ObjectClass.PROVISIONING, ObjectClass.LEAF),
        "ou": (source.timestamp,),
        Attribute.EXECUTION_DATE: ("0",),
        Attribute.MODE: (Mode.UNRETAIN_SMALL_FILES,),
        Attribute.STATE: (NOW,),
        Attribute.RETURN_VALUE: ("0",),
        Attribute.RESTORE_FROM: (source.machine,),
        **{name: (value,) for name, value in wishes.items() if value},
    }
