"""What libvirt's XML says of a machine, and the one change made to it: the true image chain.

No DTD, no entities, no network: the XML inside a state file is the guest's neighbourhood, not ours. Pure; called by
`hypervisor` and the operations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lxml import etree

from nodeagent.host.errors import HostFailure

_PARSER_OPTIONS: dict[str, Any] = {
    # libvirt reads UTF-8 whatever is declared; else something could be hidden from us that it acts on.
    "encoding": "utf-8",
    "resolve_entities": False,
    "no_network": True,
    "load_dtd": False,
    "dtd_validation": False,
    "huge_tree": False,
    # libvirt reads a value on both sides of a comment, lxml only the first part.
    "remove_comments": True,
    "remove_pis": True,
}
_BOUND_TO_HOST = {
    "hostdev": "it has a device of the host",
    "filesystem": "it shares a directory of the host",
    "shmem": "it shares memory with the host",
}
_MEMORY_UNITS = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": 1 << 10,
    "KiB": 1 << 10,
    "MB": 10**6,
    "M": 1 << 20,
    "MiB": 1 << 20,
}
_MEMORY_UNITS |= {"GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40}


@dataclass(frozen=True)
class XmlDisk:
    """One disk element. `source` is the absolute path of a file disk, None for anything else."""

    target: str
    device: str
    format: str
    source: str | None
    readonly: bool
    chain: tuple[str, ...]

    @property
    def is_backed_up(self) -> bool:
        """Writable disks are; CD-ROMs, floppies and read-only disks are not the machine's own data."""
        return self.device == "disk" and not self.readonly


@dataclass(frozen=True)
class Description:
    """What matters of a machine's XML. `memory` in bytes."""

    name: str
    uuid: str
    memory: int
    disks: tuple[XmlDisk, ...]
    nvram: str | None
    has_tpm: bool

    @property
    def chains(self) -> dict[str, tuple[str, ...]]:
        """Each disk's image chain by its target, the live image first."""
        return {disk.target: disk.chain for disk in self.disks}


def describe(xml: str) -> Description:
    """Read a machine's XML."""
    root = parse_xml(xml)
    return Description(
        name=root.findtext("name") or "",
        uuid=root.findtext("uuid") or "",
        memory=_memory(root),
        disks=tuple(_disk(element) for element in root.findall("devices/disk")),
        nvram=root.findtext("os/nvram") or None,
        has_tpm=root.find("devices/tpm/backend[@type='emulator']") is not None,
    )


def with_chain(xml: str, chains: Mapping[str, str]) -> str:
    """The XML with each named disk's image over the given backing file, and no other word about chains.

    A saved machine's XML ends every chain at the image itself; restored with that, QEMU would read zeros where the
    backing file has data.
    """
    root = parse_xml(xml)
    for disk in root.findall("devices/disk"):
        for ended in disk.findall("backingStore"):
            disk.remove(ended)
        backing = chains.get(_attribute(disk, "target", "dev"))
        if backing is not None:
            disk.append(_backing_store(backing))
    return etree.tostring(root, encoding="unicode")


def with_sources(xml: str, sources: Mapping[str, str]) -> str:
    """The XML with each named disk on the given image, and no word about its chain."""
    root = parse_xml(xml)
    for disk in root.findall("devices/disk"):
        source, path = disk.find("source"), sources.get(_attribute(disk, "target", "dev"))
        if source is not None and path is not None:
            source.set("file", path)
            for store in disk.findall("backingStore"):
                disk.remove(store)
    return etree.tostring(root, encoding="unicode")


def snapshot_request(overlays: Mapping[str, str], others: Sequence[str], memory: str | None) -> str:
    """What libvirt is asked for when disks are frozen: `overlays` target → path, `others` are left alone."""
    root = etree.Element("domainsnapshot")
    kept = etree.SubElement(root, "memory", snapshot="external" if memory else "no")
    if memory:
        kept.set("file", memory)
    disks = etree.SubElement(root, "disks")
    for target, path in overlays.items():
        disk = etree.SubElement(disks, "disk", name=target, snapshot="external", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "source", file=path)
    for target in others:
        etree.SubElement(disks, "disk", name=target, snapshot="no")
    return etree.tostring(root, encoding="unicode")


def has_agent_channel(xml: str) -> bool:
    """Whether there is a channel for QEMU's agent inside the guest."""
    return bool(_agent_channels(xml))


def has_connected_agent(xml: str) -> bool:
    """Whether QEMU's agent inside the guest has opened its channel."""
    return any(target.get("state") == "connected" for target in _agent_channels(xml))


def _agent_channels(xml: str) -> list[etree._Element]:
    return parse_xml(xml).findall("devices/channel/target[@name='org.qemu.guest_agent.0']")


def is_mirror_ready(xml: str, target: str) -> bool:
    """Whether a disk's commit has caught up with what the machine writes."""
    mirrors = parse_xml(xml).findall(f"devices/disk/target[@dev='{target}']/../mirror")
    return any(mirror.get("ready") == "yes" for mirror in mirrors)


def ties_to_host(xml: str) -> tuple[str, ...]:
    """What of a machine cannot be saved with its memory, in words; empty where nothing is in the way."""
    root = parse_xml(xml)
    return tuple(what for kind, what in _BOUND_TO_HOST.items() if root.find(f"devices/{kind}") is not None)


def without_chains(xml: str) -> str:
    """The XML as it is kept in a set: images alone, as they lie there, without their chains of that day."""
    return with_chain(xml, {})


def parse_xml(xml: str) -> etree._Element:
    """The root element; HostFailure for what is no XML, or XML that declares a document type."""
    try:
        root = etree.fromstring(xml.encode(), etree.XMLParser(**_PARSER_OPTIONS))
    except etree.XMLSyntaxError as why:
        raise HostFailure(f"the machine's XML cannot be read: {why}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise HostFailure("the machine's XML declares a document type; that is never libvirt's own")
    return root


def _disk(element: etree._Element) -> XmlDisk:
    is_file = element.get("type") == "file"
    return XmlDisk(
        target=_attribute(element, "target", "dev"),
        device=element.get("device", "disk"),
        format=_attribute(element, "driver", "type"),
        source=(_attribute(element, "source", "file") or None) if is_file else None,
        readonly=element.find("readonly") is not None,
        chain=tuple(_chain(element)),
    )


def _chain(element: etree._Element) -> list[str]:
    """The files of an image chain, the live image first."""
    files = []
    layer: etree._Element | None = element
    while layer is not None:
        source = _attribute(layer, "source", "file")
        if source:
            files.append(source)
        layer = layer.find("backingStore")
    return files


def _backing_store(path: str) -> etree._Element:
    store = etree.Element("backingStore", type="file")
    etree.SubElement(store, "format", type="qcow2")
    etree.SubElement(store, "source", file=path)
    etree.SubElement(store, "backingStore")
    return store


def _attribute(element: etree._Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""


def _memory(root: etree._Element) -> int:
    element = root.find("memory")
    return 0 if element is None else bytes_of(element)


def bytes_of(size: etree._Element) -> int:
    """A size element's bytes, KiB where it names no unit; 0 where it holds no number."""
    text = (size.text or "").strip()
    return int(text) * _MEMORY_UNITS.get(size.get("unit", "KiB"), 1 << 10) if text.isdecimal() else 0
