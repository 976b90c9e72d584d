"""Which devices a description may hold, kind by kind; called by `allowed`, which looks at their paths.

Allowed is what a guest needs and what reaches nothing of the host: no host hardware, no connection to elsewhere, no
file but those that have a place.
"""

from collections.abc import Callable, Iterator

from lxml import etree


def words(text: str) -> frozenset[str]:
    """Names, written as prose."""
    return frozenset(text.split())


# libvirt 9 also knows filesystem, hostdev, lease and shmem: a directory, hardware, a lock space, memory of the host.
_KINDS = words(
    "emulator disk controller interface graphics video sound audio input hub serial parallel console channel "
    "smartcard rng tpm watchdog memballoon panic vsock iommu memory nvram crypto redirdev redirfilter"
)
_DISK_PARTS = words(
    "driver source target iotune readonly shareable transient serial wwn vendor product boot alias address geometry "
    "blockio encryption backingStore acpi"
)
_SOURCE_ATTRIBUTES = frozenset({"file", "startupPolicy", "index"})
_SOURCE_PARTS = frozenset({"seclabel", "encryption", "slices"})
_NETWORKS = frozenset({"network", "bridge", "user", "direct"})
_CHARACTER_TYPES = frozenset({"pty", "null", "vc", "spicevmc", "spiceport", "unix", "file", "qemu-vdagent", "tcp"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def device_reasons(device: etree._Element) -> Iterator[str]:
    """Every reason against one device, whatever its paths."""
    tag = str(device.tag)
    if tag not in _KINDS:
        yield f"the device <{tag}> is not allowed"
        return
    if any(driver.get("name") == "vhostuser" for driver in device.iterfind("driver")):
        yield f"<{tag}> is served by another program of the host (vhostuser), which is not allowed"
    if tag in _RULES:
        yield from _RULES[tag](device)


def _disk(disk: etree._Element) -> Iterator[str]:
    what = f"the disk {_attribute(disk, 'target', 'dev') or '?'}"
    if disk.get("type", "file") != "file":
        yield f"{what} is of type {disk.get('type')}; only image files are allowed"
    if disk.get("device", "disk") not in ("disk", "cdrom", "floppy"):
        yield f"{what} is a {disk.get('device')}; disk, cdrom and floppy are allowed"
    if disk.get("rawio") == "yes":
        yield f"{what} asks for rawio, which is not allowed"
    for child in disk:
        if child.tag not in _DISK_PARTS:
            yield f"{what} has a <{child.tag}>, which is not allowed"
    for tag in ("source", "target", "driver", "readonly", "backingStore"):
        if len(disk.findall(tag)) > 1:
            yield f"{what} has more than one <{tag}>"
    yield from _image(what, disk)


def _image(what: str, disk: etree._Element) -> Iterator[str]:
    for chain in disk.iterfind("backingStore"):
        if len(chain) or chain.attrib:
            yield f"{what} names a backing chain; a restored image stands alone: remove <backingStore>"
    for source in disk.iterfind("source"):
        yield from _source(what, source)


def _source(what: str, source: etree._Element) -> Iterator[str]:
    for name in source.attrib:
        if name not in _SOURCE_ATTRIBUTES:
            yield f"{what} has a source {str(name)!r}; only file is allowed"
    for child in source:
        if child.tag not in _SOURCE_PARTS:
            yield f"{what} has a <{child.tag}> in its source, which is not allowed"


def _interface(card: etree._Element) -> Iterator[str]:
    if card.get("type") not in _NETWORKS:
        yield f"a network card of type {card.get('type')} is not allowed; {', '.join(sorted(_NETWORKS))} are"
    for script in (*card.findall("script"), *card.findall("downscript")):
        yield f"a network card runs <{script.tag}>, which is not allowed"
    if _attribute(card, "backend", "logFile"):
        yield "a network card's backend writes a log file, which is not allowed"


def _character(device: etree._Element) -> Iterator[str]:
    """Consoles and channels: nothing that opens a device or pipe of the host, or reaches out of it."""
    kind = device.get("type", "pty")
    if kind not in _CHARACTER_TYPES:
        yield f"<{device.tag}> of type {kind} is not allowed; {', '.join(sorted(_CHARACTER_TYPES))} are"
    if kind == "tcp":
        for source in device.iterfind("source"):
            if source.get("mode") != "bind" or source.get("host") not in _LOOPBACK:
                yield f"<{device.tag}> of type tcp is allowed only where it listens on 127.0.0.1 or ::1"


def _redirected(device: etree._Element) -> Iterator[str]:
    if device.get("type") != "spicevmc":
        yield f"<{device.tag}> of type {device.get('type')} is not allowed; spicevmc is"


def _smartcard(card: etree._Element) -> Iterator[str]:
    if card.get("mode") != "passthrough" or card.get("type") != "spicevmc":
        yield "a smartcard of the host is not allowed; passthrough of type spicevmc is"


def _tpm(tpm: etree._Element) -> Iterator[str]:
    for backend in tpm.iterfind("backend"):
        if backend.get("type") != "emulator":
            yield f"a TPM of type {backend.get('type')} is not allowed; emulator is"
        if backend.find("source") is not None:
            yield "a TPM with a place of its own is not allowed; libvirt keeps it"


def _random(rng: etree._Element) -> Iterator[str]:
    for backend in rng.iterfind("backend"):
        if backend.get("model") not in ("random", "builtin"):
            yield f"a random generator fed by {backend.get('model')} is not allowed; random and builtin are"


def _input(device: etree._Element) -> Iterator[str]:
    if device.get("type") in ("passthrough", "evdev") or device.find("source") is not None:
        yield "an input device of the host is not allowed"


def _graphics(graphics: etree._Element) -> Iterator[str]:
    if graphics.get("type") not in ("vnc", "spice"):
        yield f"graphics of type {graphics.get('type')} are not allowed; vnc and spice are"


def _audio(audio: etree._Element) -> Iterator[str]:
    if audio.get("type") not in ("none", "spice"):
        yield f"audio of type {audio.get('type')} is not allowed; none and spice are"


def _memory(memory: etree._Element) -> Iterator[str]:
    if memory.get("model") not in ("dimm", "virtio-mem") or memory.find("source/path") is not None:
        yield f"a memory device {memory.get('model')} that lies in a file of the host is not allowed"


def _attribute(element: etree._Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")


_RULES: dict[str, Callable[[etree._Element], Iterator[str]]] = {
    "disk": _disk,
    "interface": _interface,
    "serial": _character,
    "parallel": _character,
    "console": _character,
    "channel": _character,
    "redirdev": _redirected,
    "smartcard": _smartcard,
    "tpm": _tpm,
    "rng": _random,
    "input": _input,
    "graphics": _graphics,
    "audio": _audio,
    "memory": _memory,
}
