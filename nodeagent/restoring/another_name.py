"""A saved machine under another name: its own UUID, network cards, image files and entry, to run beside the old one.

Pure; called when a leaf wishes for a restore from another machine's set.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lxml import etree

from nodeagent.host.description import describe, parse_xml
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import check_name
from vmkeep.contract.names import Attribute, Tree, escape_rdn
from vmkeep.directory.equality import normal_dn, normal_value
from vmkeep.directory.port import Entry

_QEMU_PREFIX = "52:54:00"
_NAMES_ONLY_A_RUN = ("seclabel", "genid")


@dataclass(frozen=True)
class NewIdentity:
    """Who the new machine is. `macs` are one a network card (None keeps them), `paths` old image path → new one.

    `nvram` is the path of its firmware variables (None where it has none); `isolated` leaves its cables unplugged.
    """

    name: str
    uuid: str
    macs: tuple[str, ...] | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    nvram: str | None = None
    isolated: bool = False


def renamed_description(xml: str, new: NewIdentity) -> str:
    """The XML of the new machine: nothing in it is shared with the old one but what is only read.

    Isolated means that the link of every network card is down: the card stays what it was to the guest, and one
    `virsh domif-setlink` plugs it in. Refused (33) where a writable disk has no new path.
    """
    root = parse_xml(xml)
    old = describe(xml)
    _rename(root, new)
    for disk in root.findall("devices/disk"):
        _move_disk(disk, old.name, new)
    nvram = root.find("os/nvram")
    if nvram is not None and new.nvram:
        nvram.text = new.nvram
    elif nvram is not None:
        _drop(nvram)
    _renumber_cards(root, new)
    _part_from_host(root, old.name, new.name)
    return etree.tostring(root, encoding="unicode")


def renamed_entries(entries: Iterable[Entry], old: str, new_identity: NewIdentity, tree: Tree) -> tuple[Entry, ...]:
    """The saved entries as the new machine's, without the old one's plan, which is not the new one's."""
    above, own_plan = normal_dn(tree.machine(old)), normal_dn(tree.machine_plan(old))
    mine = [entry for entry in entries if _is_within(entry.dn, above) and not _is_within(entry.dn, own_plan)]
    return tuple(_renamed_entry(entry, old, new_identity, tree) for entry in mine)


def new_paths(disks: Sequence[tuple[str, str]], old: str, new: str) -> dict[str, str]:
    """Old path → new path for (target, path) of each disk: same directory, named after the new machine.

    No new path is an old one, and no two are the same.
    """
    taken = {path for _, path in disks}
    chosen: dict[str, str] = {}
    for target, path in disks:
        chosen[path] = next(name for name in _candidates(target, path, old, new) if name not in taken)
        taken.add(chosen[path])
    return chosen


def new_nvram(path: str, old: str, new: str) -> str:
    """Where the new machine's firmware variables lie: same directory, named after the new machine."""
    return new_paths([("nvram", path)], old, new)[path]


def new_mac(random: bytes) -> str:
    """A MAC of QEMU's own range, from at least three random bytes."""
    if len(random) < 3:
        raise ValueError("three random bytes are needed for a MAC")
    return ":".join([_QEMU_PREFIX, *(f"{byte:02x}" for byte in random[:3])])


def new_macs(xml: str, random: Callable[[int], bytes]) -> tuple[str, ...]:
    """A MAC for each network card of a description, all different; `random` gives that many random bytes."""
    macs: dict[str, None] = {}
    wanted = len(parse_xml(xml).findall("devices/interface"))
    while len(macs) < wanted:
        macs[new_mac(random(3))] = None
    return tuple(macs)


# paths


def _candidates(target: str, path: str, old: str, new: str) -> Iterable[str]:
    place = PurePosixPath(path)
    yield str(place.with_name(_renamed_file(place.name, old, new)))
    yield str(place.with_name(f"{new}-{target}-{place.name}"))
    for number in range(2, 1000):
        yield str(place.with_name(f"{new}-{target}-{number}-{place.name}"))


def _renamed_file(basename: str, old: str, new: str) -> str:
    """Only whole words: the m of system.qcow2 is not the machine m."""
    renamed = re.sub(rf"(?<![A-Za-z0-9]){re.escape(old)}(?![A-Za-z0-9])", lambda _: new, basename)
    return renamed if renamed != basename else f"{new}-{basename}"


# description


def _rename(root: etree._Element, new: NewIdentity) -> None:
    root.attrib.pop("id", "")
    for tag, text in (("name", check_name(new.name)), ("uuid", new.uuid)):
        element = root.find(tag)
        if element is None:
            element = etree.SubElement(root, tag)
        element.text = text
    # libvirt refuses a machine whose firmware table tells another UUID than its definition.
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        entry.text = new.uuid
    for tag in _NAMES_ONLY_A_RUN:
        for element in root.findall(tag):
            _drop(element)


def _move_disk(disk: etree._Element, old: str, new: NewIdentity) -> None:
    for chain in (*disk.findall("backingStore"), *disk.findall("mirror")):
        _drop(chain)
    source = disk.find("source")
    path = source.get("file") if source is not None else None
    if source is not None and path in new.paths:
        source.set("file", new.paths[str(path)])
        return
    is_read_only = disk.get("device") == "cdrom" or disk.find("readonly") is not None
    if source is not None and not is_read_only:
        target = disk.find("target")
        raise Refused(
            ReturnValue.INCONSISTENT_DISKS,
            f"{new.name}: the disk {target.get('dev', '?') if target is not None else '?'} ({path or 'no file'}) of "
            f"{old} has no new path; two machines must not write one image",
        )


def _renumber_cards(root: etree._Element, new: NewIdentity) -> None:
    cards = root.findall("devices/interface")
    if new.macs is not None and len(new.macs) != len(cards):
        raise ValueError(f"{len(cards)} network cards need as many MACs, not {len(new.macs)}")
    for number, card in enumerate(cards):
        for device in card.findall("target"):
            _drop(device)  # the host's end of the cable; a fixed name can be there only once
        for source in card.findall("source"):
            source.attrib.pop("portid", "")
        if new.macs is not None:
            _child(card, "mac").set("address", new.macs[number])
        if new.isolated:
            _child(card, "link").set("state", "down")


def _part_from_host(root: etree._Element, old: str, new: str) -> None:
    """Give up what only one machine of a host can have: log files, sockets, ports, numbers."""
    for log in root.findall("devices/*/log"):
        _move_file(log, "file", old, new)
    for source in root.findall("devices/*/source"):
        device = source.getparent()
        if device is None or device.get("type") not in ("file", "unix"):
            continue
        if "/channel/" in source.get("path", ""):
            _drop(source)  # libvirt's own socket, which it names anew
        else:
            _move_file(source, "path", old, new)
    for graphics in root.findall("devices/graphics"):
        _free_ports(graphics, old, new)
    for number in root.findall("devices/vsock/cid"):
        number.attrib.clear()
        number.set("auto", "yes")


def _free_ports(graphics: etree._Element, old: str, new: str) -> None:
    if graphics.get("port") or graphics.get("autoport"):
        for name in ("port", "tlsPort", "websocket"):
            graphics.attrib.pop(name, "")
        graphics.set("autoport", "yes")
    for element in (graphics, *graphics.findall("listen")):
        _move_file(element, "socket", old, new)


def _move_file(element: etree._Element, attribute: str, old: str, new: str) -> None:
    path = element.get(attribute)
    if path:
        element.set(attribute, new_paths([("", path)], old, new)[path])


def _child(element: etree._Element, tag: str) -> etree._Element:
    found = element.find(tag)
    return etree.SubElement(element, tag) if found is None else found


def _drop(element: etree._Element) -> None:
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


# entries


def _renamed_entry(entry: Entry, old: str, new: NewIdentity, tree: Tree) -> Entry:
    return Entry(
        _renamed_dn(entry.dn, old, new.name, tree),
        {name: _renamed_values(name, values, old, new) for name, values in entry.attributes.items()},
    )


def _renamed_dn(dn: str, old: str, new: str, tree: Tree) -> str:
    below = len(normal_dn(dn)) - len(normal_dn(tree.machine(old)))
    own = re.findall(r"(?:\\.|[^\\,])+", dn, re.DOTALL)[:below]
    return ",".join([*own, f"{Attribute.MACHINE}={escape_rdn(new)}", tree.machines])


def _renamed_values(name: str, values: tuple[str, ...], old: str, new: NewIdentity) -> tuple[str, ...]:
    folded = name.casefold()
    if folded in (Attribute.MACHINE.casefold(), "sstdisplayname"):
        is_old = [normal_value(name, value) == normal_value(name, old) for value in values]
        return tuple(new.name if same else value for same, value in zip(is_old, values, strict=True))
    if folded == Attribute.SOURCE_FILE.casefold():
        return tuple(new.paths.get(value, value) for value in values)
    if folded == "sstvolumename":
        names = {PurePosixPath(path).name: PurePosixPath(moved).name for path, moved in new.paths.items()}
        return tuple(names.get(value, value) for value in values)
    return values


def _is_within(dn: str, above: Sequence[object]) -> bool:
    own = normal_dn(dn)
    return own[max(0, len(own) - len(above)) :] == tuple(above)
