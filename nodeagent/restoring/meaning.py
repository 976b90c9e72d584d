"""The form in which two descriptions of a machine are equal when they mean the same: without what a run leaves.

Pure; called by `conflicts`. A description is taken from a state file, from a running machine or from a definition, and
the three differ in ids, aliases, addresses, labels and chains although nobody changed anything.
"""

import re
from typing import TypeAlias

from lxml import etree

from nodeagent.host.description import bytes_of

# tag, attributes, text, children
Meaning: TypeAlias = tuple[str, tuple[tuple[str, str], ...], str, tuple["Meaning", ...]]

_OF_A_RUN = frozenset({"alias", "seclabel", "backingStore", "mirror", "genid", "resource", "privateData"})
_SIZES = frozenset({"memory", "currentMemory", "maxMemory"})
_OWN_NETWORK_DEVICE = re.compile(r"(vnet|macvtap|macvlan)[0-9]+")
_SECRET = frozenset({"passwd"})
_ALWAYS = {
    ("", "domain"): ("id",),
    ("disk", "source"): ("index",),
    ("devices", "console"): ("tty",),
    ("channel", "target"): ("state",),
    ("domain", "clock"): ("adjustment",),
    ("devices", "graphics"): ("listen",),  # says what its element <listen> says
}
_FILLED_IN = {
    "graphics": (("autoport", "yes", ("port", "tlsPort")), ("websocket", "-1", ("websocket",))),
    "listen": (("type", "network", ("address",)),),
    "cid": (("auto", "yes", ("address",)),),
}
_DEFAULTS = {
    "vcpu": {"placement": "static"},
    "memballoon": {"model": "virtio"},
    "source": {"startupPolicy": "mandatory"},
}


def meaning(element: etree._Element) -> Meaning:
    """What one element says."""
    attributes = {str(name): str(value) for name, value in element.attrib.items()}
    for name in _attributes_of_a_run(element):
        attributes.pop(name, None)
    text = _text(element)
    if element.tag in _SIZES and element.getparent() is not None and text.isdigit():
        text = str(bytes_of(element))
        attributes.pop("unit", None)
    children = [meaning(child) for child in element if not _is_of_a_run(child)]
    # The order of <boot> is what a machine boots from; elsewhere order says nothing.
    ordered = children if element.tag == "os" else sorted(children)
    return str(element.tag), tuple(sorted(attributes.items())), text, tuple(ordered)


def shown(element: etree._Element | None) -> str:
    """An element for people: one line of XML, without what a run leaves behind; "" for none."""
    return "" if element is None else _as_line(meaning(element))


def _as_line(said: Meaning) -> str:
    tag, attributes, text, children = said
    inner = text + "".join(_as_line(child) for child in children)
    # What is shown goes to the directory, where more people read it.
    head = " ".join([tag, *(f"{name}='{'…' if name in _SECRET else value}'" for name, value in attributes)])
    return f"<{head}>{inner}</{tag}>" if inner else f"<{head}/>"


def _text(element: etree._Element) -> str:
    return " ".join((element.text or "").split())


def _is_of_a_run(element: etree._Element) -> bool:
    tag, parent = element.tag, element.getparent()
    above = parent.tag if parent is not None else ""
    kind = parent.get("type", "") if parent is not None else ""
    if tag in _OF_A_RUN:
        return True
    if tag == "address":  # of a hostdev's source it names the host's device
        return above != "source"
    if tag == "source" and kind in ("pty", "vc", "null", "spicevmc"):
        return True
    if tag == "source" and kind == "unix":
        return "/channel/" in element.get("path", "")
    if tag == "target" and above == "interface":
        return bool(_OWN_NETWORK_DEVICE.fullmatch(element.get("dev", "")))
    if tag == "listen" and above == "graphics":
        return element.get("type") == "address" and element.get("address", "127.0.0.1") == "127.0.0.1"
    if tag == "driver" and above == "disk":  # without a medium it has no format
        return parent is not None and parent.find("source") is None
    return tag == "currentMemory" and _equals_memory(element)


def _equals_memory(current: etree._Element) -> bool:
    parent = current.getparent()
    memory = parent.find("memory") if parent is not None else None
    return memory is not None and bytes_of(memory) == bytes_of(current)


def _attributes_of_a_run(element: etree._Element) -> list[str]:
    """Attributes that libvirt fills in, or that say what is so anyway."""
    tag, parent = element.tag, element.getparent()
    above = parent.tag if parent is not None else ""
    names = [name for name, value in _DEFAULTS.get(str(tag), {}).items() if element.get(name) == value]
    names += _ALWAYS.get((above, str(tag)), ())
    names += [
        name for when, wanted, filled in _FILLED_IN.get(str(tag), ()) if element.get(when) == wanted for name in filled
    ]
    if tag == "source" and element.get("network"):
        names += ["portid", "bridge"]
    if tag == "vcpu" and element.get("current") == _text(element):
        names.append("current")
    return names
