"""What a description may hold before libvirt gets it: an allow-list of elements, and a place for every path.

Pure; called on edited descriptions and on those inside state files. libvirt runs as root and does what it reads: what
is not known here is refused. Symbolic links are not looked at: whoever can make one below a root owns that root.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lxml import etree

from nodeagent.host.description import describe, parse_xml, without_chains
from nodeagent.host.errors import HostFailure
from nodeagent.restoring.devices import device_reasons, words
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.names import ObjectClass
from vmkeep.directory.catalogue import disk_of
from vmkeep.directory.port import Entry

_MAX_LENGTH = 4 << 20
_TOP = words(
    "name uuid genid title description metadata maxMemory memory currentMemory memtune memoryBacking numatune "
    "blkiotune vcpu vcpus iothreads iothreadids defaultiothread cputune resource sysinfo os features cpu clock "
    "on_poweroff on_reboot on_crash on_lockfailure pm perf keywrap devices seclabel"
)
_BOOT = words("type loader nvram kernel initrd cmdline dtb boot bootmenu bios smbios acpi firmware")
_TEXT = frozenset({"title", "description", "metadata"})

# Where paths stand, and what each may name. Paths anywhere else are refused.
_READABLE, _WRITABLE, _NVRAM, _ANY = "readable_roots", "writable_roots", "nvram_roots", ""
_CHARACTER = ("serial", "parallel", "console", "channel")
_PLACES = {
    ("os/loader", ""): _READABLE,
    ("os/kernel", ""): _READABLE,
    ("os/initrd", ""): _READABLE,
    ("os/dtb", ""): _READABLE,
    ("os/acpi/table", ""): _READABLE,
    ("os/nvram", "template"): _READABLE,
    ("os/nvram", ""): _NVRAM,
    ("os/nvram/source", "file"): _NVRAM,
    ("sysinfo/entry", "file"): _READABLE,
    ("devices/graphics", "socket"): _WRITABLE,
    ("devices/graphics/listen", "socket"): _WRITABLE,
    **{(f"devices/{kind}/log", "file"): _WRITABLE for kind in _CHARACTER},
    **{(f"devices/{kind}/source", "path"): _WRITABLE for kind in _CHARACTER},
    **{(f"devices/{kind}/rom", "file"): _READABLE for kind in ("interface", "controller", "video")},
    # No file is opened by these.
    ("os/cmdline", ""): _ANY,
    ("resource/partition", ""): _ANY,
    ("blkiotune/device/path", ""): _ANY,
}
_SAID_ELSEWHERE = frozenset({("devices/disk/source", "file"), ("devices/emulator", "")})
_EXACTLY = {
    ("devices/rng/backend", ""): ("/dev/urandom", "/dev/random"),
    ("devices/interface/backend", "tap"): ("/dev/net/tun",),
    ("devices/interface/backend", "vhost"): ("/dev/vhost-net",),
}


@dataclass(frozen=True)
class AllowedPlaces:
    """What this node allows: absolute directories, and the emulators themselves."""

    image_roots: tuple[str, ...]
    nvram_roots: tuple[str, ...]
    readable_roots: tuple[str, ...]
    writable_roots: tuple[str, ...]
    emulators: tuple[str, ...]


def refusals(xml: str, rules: AllowedPlaces) -> tuple[str, ...]:
    """Every reason against a description at once, a phrase each; empty when libvirt may have it."""
    if len(xml) > _MAX_LENGTH:
        return (f"it is longer than {_MAX_LENGTH} characters",)
    try:
        root = parse_xml(xml)
    except (HostFailure, ValueError) as why:
        return (str(why),)
    return tuple(dict.fromkeys(_reasons(root, rules)))


def peculiarities(xml: str) -> tuple[str, ...]:
    """Every path a description names and all else that not any may hold: what tells whether another names more.

    But for image chains, which come and go with backups.
    """
    try:
        return refusals(without_chains(xml), AllowedPlaces((), (), (), (), ()))
    except (HostFailure, ValueError) as why:
        return (str(why),)


def check_edited(xml: str, ldif_entries: Sequence[Entry], machine: str, uuid: str, files: tuple[str, str]) -> None:
    """Refused where an edited description is no XML or another machine's (45), or has not the LDIF's disks (33).

    `files` are the names of the description's file and the LDIF's, for people.
    """
    xml_file, ldif_file = files
    try:
        description = describe(xml)
    except (HostFailure, ValueError) as why:
        raise Refused(
            ReturnValue.CANNOT_READ_XML, f"{machine}: {why}; correct {xml_file}, or copy it from the set again"
        ) from None
    for what, found, wanted in (("name", description.name, machine), ("uuid", description.uuid.lower(), uuid.lower())):
        if found != wanted:
            raise Refused(
                ReturnValue.CANNOT_READ_XML,
                f"{machine}: {xml_file} has the {what} {found!r}, not {wanted!r}; put that back",
            )
    known = [disk_of(entry) for entry in ldif_entries if entry.has_class(ObjectClass.DISK)]
    of_ldif = sorted((disk.target, disk.source or "no file") for disk in known if disk.is_backed_up)
    of_xml = sorted((disk.target, disk.source or "no file") for disk in description.disks if disk.is_backed_up)
    if of_ldif != of_xml:
        raise Refused(
            ReturnValue.INCONSISTENT_DISKS,
            f"{machine}: {ldif_file} has the disks {_shown(of_ldif)}, {xml_file} has {_shown(of_xml)}; "
            "make them agree (sstDisk and sstSourceFile, target dev and source file)",
        )
    if not of_xml:
        raise Refused(
            ReturnValue.INCONSISTENT_DISKS, f"{machine}: neither {xml_file} nor {ldif_file} has a disk to restore"
        )


def _reasons(root: etree._Element, rules: AllowedPlaces) -> Iterator[str]:
    if root.tag != "domain" or root.get("type") not in ("kvm", "qemu"):
        yield f"it describes <{root.tag} type={root.get('type')!r}>; a domain of type kvm or qemu is wanted"
        return
    yield from _shape(root)
    yield from _known(root)
    yield from _labels(root)
    for emulator in root.iterfind("devices/emulator"):
        if _text(emulator) not in rules.emulators:
            known = ", ".join(rules.emulators)
            yield f"the emulator {_text(emulator)!r} is none of {known} (emulators in the settings)"
    for device in root.iterfind("devices/*"):
        yield from device_reasons(device)
    for disk in root.iterfind("devices/disk"):
        yield from _disk_paths(disk, rules)
    yield from _paths(root, rules)


def _known(root: etree._Element) -> Iterator[str]:
    for element in root:
        if element.tag not in _TOP:
            yield f"<{_name(element)}> is not allowed"
    for element in root.iterfind("os/*"):
        if element.tag not in _BOOT:
            yield f"<{_name(element)}> of <os> is not allowed"
    for nvram in root.iterfind("os/nvram"):
        if nvram.get("type", "file") != "file":
            yield f"NVRAM of type {nvram.get('type')} is not allowed; only files are"


def _shape(root: etree._Element) -> Iterator[str]:
    """Two readers must not see two things: what is there twice, or half text and half elements, is refused."""
    for tag, count in Counter(_name(child) for child in root).items():
        if count > 1 and tag not in ("seclabel", "sysinfo"):
            yield f"<{tag}> stands there {count} times"
    for element in _walk(root):
        if not isinstance(element.tag, str) or "{" in element.tag or any("{" in str(name) for name in element.attrib):
            yield f"<{_name(element)}> of a foreign namespace is not allowed"
        texts = [element.text, *(child.tail for child in element)]
        if len(element) and any((text or "").strip() for text in texts):
            yield f"<{_name(element)}> holds text and elements at once"


def _labels(root: etree._Element) -> Iterator[str]:
    for label in root.findall("seclabel"):
        kind, model = label.get("type", "dynamic"), label.get("model", "")
        if kind == "none" and model == "none":
            continue
        # A fixed label, or none where there is a guard, lets a guest out of its confinement.
        if kind != "dynamic" or label.find("baselabel") is not None:
            yield f"<seclabel type='{kind}' model='{model}'> is not allowed; only dynamic ones are"
    for label in (found for found in _walk(root) if found.tag == "seclabel" and found.getparent() is not root):
        if label.get("relabel") != "no" or len(label):
            yield "a <seclabel> of a device is allowed only with relabel='no'"


# paths


def _paths(root: etree._Element, rules: AllowedPlaces) -> Iterator[str]:
    for element in _walk(root):
        where = _where(element)
        values = [("", _text(element) if not len(element) else "")]
        values += [(str(name), str(value)) for name, value in element.attrib.items()]
        for name, value in values:
            yield from _path(element, where, name, value, rules)


def _path(element: etree._Element, where: str, name: str, value: str, rules: AllowedPlaces) -> Iterator[str]:
    key = (where, name)
    shown = f"{name}={value!r} of <{element.tag}>" if name else f"{value!r} in <{element.tag}>"
    if not value or key in _SAID_ELSEWHERE or _is_of_a_run(element, name, value):
        return
    if key in _EXACTLY and (key[1] or value.lstrip().startswith("/")):
        if value not in _EXACTLY[key]:
            yield f"{shown} is not allowed; {' or '.join(_EXACTLY[key])} is"
    elif key in _PLACES:
        kind = _PLACES[key]
        if kind and not is_below(value, getattr(rules, kind)):
            yield f"{shown} lies outside {', '.join(getattr(rules, kind))} ({kind} in the settings)"
    elif value.lstrip().startswith("/"):
        yield f"{shown} is a path where none is allowed"


def _is_of_a_run(element: etree._Element, name: str, value: str) -> bool:
    """A terminal's name is what a run had; libvirt does not read it."""
    of = element.getparent() if element.tag == "source" else element
    is_terminal = of is not None and of.tag in _CHARACTER and of.get("type") == "pty"
    return is_terminal and name in ("path", "tty") and value.removeprefix("/dev/pts/").isdecimal()


def _disk_paths(disk: etree._Element, rules: AllowedPlaces) -> Iterator[str]:
    kind = disk.get("device", "disk")
    is_read_only = kind == "cdrom" or disk.find("readonly") is not None
    roots = (*rules.image_roots, *rules.readable_roots) if is_read_only else rules.image_roots
    settings = "image_roots or readable_roots" if is_read_only else "image_roots"
    for source in disk.iterfind("source"):
        path = source.get("file", "")
        if path and not is_below(path, roots):
            yield f"the {kind} image {path!r} lies outside {', '.join(roots)} ({settings} in the settings)"


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Whether a path is absolute, written plainly, and lies below one of the roots."""
    pure = PurePosixPath(path)
    is_plain = path.startswith("/") and str(pure) == path and ".." not in pure.parts and path.isprintable()
    return is_plain and any(pure != PurePosixPath(root) and pure.is_relative_to(root) for root in roots)


# elements


def _walk(root: etree._Element) -> Iterator[etree._Element]:
    """Every element but what is prose."""
    yield root
    for child in root:
        if root.getparent() is not None or child.tag not in _TEXT:
            yield from _walk(child)


def _where(element: etree._Element) -> str:
    above = [str(parent.tag) for parent in element.iterancestors()]
    return "/".join([*reversed(above[:-1]), str(element.tag)])


def _text(element: etree._Element) -> str:
    # As libvirt reads it: unstripped, with the text of whatever stands inside.
    return "".join(str(part) for part in element.itertext()) if (element.text or "").strip() else ""


def _name(element: etree._Element) -> str:
    return str(element.tag)


def _shown(disks: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{target}={path}" for target, path in disks) or "none"
