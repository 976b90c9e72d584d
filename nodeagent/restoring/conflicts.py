"""What differs between a saved machine and the live one, by meaning, and how people and programs are told.

Pure; called when a restore's small files are back, and again to see whether an edited XML still fits the saved memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from lxml import etree

from nodeagent.host.description import bytes_of, parse_xml
from nodeagent.restoring.meaning import Meaning, meaning, shown
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.directory.alignment import Change, ChangeKind, changes
from vmkeep.directory.equality import NormalDN, normal_dn, rdn_values
from vmkeep.directory.port import Entry

_CPU_OR_MEMORY = ("memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "cpu")
_CPU_ATTRIBUTES = frozenset({Attribute.MEMORY.casefold(), "sstvcpu"})

SENTENCE_LENGTH = 499
_VALUE_LENGTH = 400
_GOING_ON = {
    "node": "the live node stays: the machine is restored where it is now",
    "disk path": "the disk comes back at the saved path",
    "network": "the machine comes back with the saved network card",
    "cpu or memory": "the machine comes back with the saved CPU and memory",
    "not defined": "the machine is defined anew from the saved XML",
    "entry gone": "the entry is added again as it was saved",
    "entry": "the entry becomes what was saved; a disk the saved LDIF does not have loses its entry",
    "description": "the machine comes back with what was saved",
}


@dataclass(frozen=True)
class Conflict:
    """One difference. `kind` is a word of the field, `what` names the part; `saved` and `live` are "" where absent."""

    kind: str
    what: str
    saved: str
    live: str


# descriptions


def compare_descriptions(saved_xml: str, live_xml: str | None) -> tuple[Conflict, ...]:
    """What differs between two descriptions; HostFailure where one cannot be read."""
    saved = parse_xml(saved_xml)
    if live_xml is None:
        return (Conflict("not defined", saved.findtext("name") or "", "defined", "libvirt knows no such machine"),)
    live = parse_xml(live_xml)
    return (*_disks(saved, live), *_networks(saved, live), *_cpu_and_memory(saved, live), *_rest(saved, live))


def _disks(saved: etree._Element, live: etree._Element) -> list[Conflict]:
    found = []
    for target, ours, theirs in _paired(saved, live, "devices/disk", _target):
        if _source(ours) != _source(theirs) or ours is None or theirs is None:
            found.append(Conflict("disk path", target, _disk_shown(ours), _disk_shown(theirs)))
        if ours is not None and theirs is not None and _without_source(ours) != _without_source(theirs):
            found.append(Conflict("description", f"disk {target}", shown(ours), shown(theirs)))
    return found


def _networks(saved: etree._Element, live: etree._Element) -> list[Conflict]:
    """Network cards by their place: a changed MAC is one difference, not a card less and a card more."""
    ours, theirs = saved.findall("devices/interface"), live.findall("devices/interface")
    pairs = zip(_filled(ours, len(theirs)), _filled(theirs, len(ours)), strict=True)
    return [
        Conflict("network", f"network card {number}", shown(mine), shown(other))
        for number, (mine, other) in enumerate(pairs, start=1)
        if _said(mine) != _said(other)
    ]


def _cpu_and_memory(saved: etree._Element, live: etree._Element) -> list[Conflict]:
    found = []
    for tag in _CPU_OR_MEMORY:
        ours, theirs = saved.find(tag), live.find(tag)
        if tag == "currentMemory" and _current(saved) == _current(live):
            continue
        if tag == "cpu" and _cpu(ours, theirs) == _cpu(theirs, ours):
            continue
        if _said(ours) != _said(theirs):
            found.append(Conflict("cpu or memory", tag, _in_short(ours), _in_short(theirs)))
    return found


def _current(root: etree._Element) -> int | None:
    """The balloon's size; None where it is as large as the memory, which is told already."""
    memory, current = root.find("memory"), root.find("currentMemory")
    if memory is None or current is None or bytes_of(current) == bytes_of(memory):
        return None
    return bytes_of(current)


def _cpu(cpu: etree._Element | None, other: etree._Element | None) -> object:
    """A CPU as far as it can be compared: a run puts names of model and features in place of what was asked for."""
    from_runs = [one is not None and one.get("check") == "full" for one in (cpu, other)]
    if from_runs[0] == from_runs[1]:
        return _said(cpu)
    parts = ["topology", "numa"]
    if all(one is not None and one.get("mode", "custom") == "custom" for one in (cpu, other)):
        parts.append("model")
    return [[meaning(found) for found in (cpu.findall(part) if cpu is not None else [])] for part in parts]


def _rest(saved: etree._Element, live: etree._Element) -> list[Conflict]:
    """Everything else: elements of the machine by their name, devices by kind and place."""
    known = {*_CPU_OR_MEMORY, "devices", "name", "id"}
    found = _by_tag(saved, live, lambda tag: tag not in known, "")
    ours, theirs = (root.find("devices") for root in (saved, live))
    empty = etree.Element("devices")
    return found + _by_tag(
        empty if ours is None else ours,
        empty if theirs is None else theirs,
        lambda tag: tag not in ("disk", "interface"),
        "device ",
    )


def _by_tag(saved: etree._Element, live: etree._Element, wanted: Callable[[str], bool], prefix: str) -> list[Conflict]:
    tags = dict.fromkeys(str(child.tag) for child in (*saved, *live) if wanted(str(child.tag)))
    found = []
    for tag in tags:
        ours, theirs = _left_over(saved.findall(tag), live.findall(tag))
        if ours or theirs:
            found.append(Conflict("description", prefix + tag, _joined(ours), _joined(theirs)))
    return found


def _left_over(
    ours: list[etree._Element], theirs: list[etree._Element]
) -> tuple[list[etree._Element], list[etree._Element]]:
    """What each side has and the other has not, whatever the order."""
    remaining = list(theirs)
    only_ours = []
    for element in ours:
        twin = next((other for other in remaining if meaning(other) == meaning(element)), None)
        if twin is None:
            only_ours.append(element)
        else:
            remaining.remove(twin)
    return ([e for e in only_ours if not _says_nothing(e)], [e for e in remaining if not _says_nothing(e)])


def _says_nothing(element: etree._Element) -> bool:
    return element.tag in ("seclabel", "genid", "resource")


def _joined(elements: Iterable[etree._Element]) -> str:
    return " ".join(shown(element) for element in elements)


# whether the saved memory still fits


def hardware_differs(saved_xml: str, edited_xml: str) -> tuple[str, ...]:
    """What a guest would see changed, in words; empty when its saved memory can go on with the edited XML."""
    saved, edited = parse_xml(saved_xml), parse_xml(edited_xml)
    differences = [_parts_of_the_board(saved, edited), _cards(saved, edited), _disk_places(saved, edited)]
    return tuple(sentence for part in differences for sentence in part)


def _parts_of_the_board(saved: etree._Element, edited: etree._Element) -> list[str]:
    found = []
    if (before := _size(saved)) != (after := _size(edited)):
        found.append(f"memory: {before} bytes were saved, {after} are wanted")
    (vcpu, other_vcpu), (cpu, other_cpu) = ((saved.find(tag), edited.find(tag)) for tag in ("vcpu", "cpu"))
    if _said(vcpu) != _said(other_vcpu):
        found.append(f"virtual CPUs: {_in_short(vcpu)} saved, {_in_short(other_vcpu)} wanted")
    if _cpu(cpu, other_cpu) != _cpu(other_cpu, cpu):
        found.append(f"CPU model: {_in_short(cpu) or 'none'} saved, {_in_short(other_cpu) or 'none'} wanted")
    for name in ("machine", "arch"):
        before_type, after_type = (_attribute(root.find("os/type"), name) for root in (saved, edited))
        if before_type != after_type:
            found.append(f"{name} type: {before_type!r} was saved, {after_type!r} is wanted")
    return found


def _cards(saved: etree._Element, edited: etree._Element) -> list[str]:
    before, after = (
        [
            f"{_attribute(card.find('mac'), 'address').lower()} {_attribute(card.find('model'), 'type')}".strip()
            for card in root.findall("devices/interface")
        ]
        for root in (saved, edited)
    )
    if before == after:
        return []
    return [f"network cards: {', '.join(before) or 'none'} saved, {', '.join(after) or 'none'} wanted"]


def _disk_places(saved: etree._Element, edited: etree._Element) -> list[str]:
    before, after = (
        sorted(
            f"{_target(disk)} ({disk.get('device', 'disk')}, {_attribute(disk.find('target'), 'bus')})"
            for disk in root.findall("devices/disk")
        )
        for root in (saved, edited)
    )
    return [] if before == after else [f"disks: {', '.join(before)} saved, {', '.join(after) or 'none'} wanted"]


# entries


def compare_entries(saved: Sequence[Entry], live: Sequence[Entry], machine: str, tree: Tree) -> tuple[Conflict, ...]:
    """What bringing the entry in line would change, and the node, which stays the live one."""
    known = {normal_dn(entry.dn): entry for entry in (*saved, *live)}
    found = [one for change in changes(saved, live, machine, tree) for one in _of_change(change, known)]
    own = normal_dn(tree.machine(machine))
    ours, theirs = (next((entry for entry in side if normal_dn(entry.dn) == own), None) for side in (saved, live))
    before, after = (entry.first(Attribute.NODE) or "" if entry else "" for entry in (ours, theirs))
    if theirs is not None and before.casefold() != after.casefold():
        found.insert(0, Conflict("node", "sstNode", before, after))
    return tuple(found)


def _of_change(change: Change, known: Mapping[NormalDN, Entry]) -> list[Conflict]:
    what = ", ".join(value for _, value in rdn_values(change.dn))
    entry = known[normal_dn(change.dn)]
    if change.kind is ChangeKind.ADD:
        return [Conflict("entry gone", what, entry.first(Attribute.SOURCE_FILE) or change.dn, "")]
    if change.kind is ChangeKind.REMOVE:
        return [Conflict("entry", what, "", entry.first(Attribute.SOURCE_FILE) or change.dn)]
    return [
        Conflict(
            _kind_of(entry, name),
            what if name.casefold() == Attribute.SOURCE_FILE.casefold() else f"{what}: {name}",
            ", ".join(values),
            ", ".join(change.before.get(name, ())),
        )
        for name, values in change.attributes.items()
    ]


def _kind_of(entry: Entry, name: str) -> str:
    if entry.has_class(ObjectClass.DISK) and name.casefold() == Attribute.SOURCE_FILE.casefold():
        return "disk path"
    return "cpu or memory" if name.casefold() in _CPU_ATTRIBUTES else "entry"


# telling


def as_text(machine: str, conflicts: Sequence[Conflict], original: str = "") -> str:
    """A sheet for an admin: what differs, what happens on going on, which file to edit, how to back out.

    `original` is the machine whose set makes a new one, which is compared with nothing.
    """
    if original:
        head = [f"{machine}: is made anew from the set of {original}; there is nothing to compare with.", ""]
    elif not conflicts:
        head = [f"{machine}: what was saved and what is live mean the same.", ""]
    else:
        head = [f"{machine}: {len(conflicts)} difference(s) between what was saved and what is live.", ""]
    return "\n".join([*head, *(line for one in conflicts for line in _lines(one)), *_what_to_do(machine)]) + "\n"


def as_json(conflicts: Sequence[Conflict]) -> str:
    """The conflicts as a JSON list of objects with kind, what, saved and live."""
    return json.dumps([asdict(one) for one in conflicts], ensure_ascii=False)


def sentence(conflicts: Sequence[Conflict]) -> str:
    """One line of less than 500 characters."""
    if not conflicts:
        return "nothing differs"
    counted = Counter(one.kind for one in conflicts)
    kinds = ", ".join(kind if count == 1 else f"{kind} ({count}×)" for kind, count in counted.items())
    told = "; ".join(
        f"{_cut(one.what, 60)}: saved {_in_sentence(one.saved)}, live {_in_sentence(one.live)}" for one in conflicts
    )
    whole = " ".join(f"differs: {kinds}. {told}".split())
    return whole if len(whole) <= SENTENCE_LENGTH else whole[: SENTENCE_LENGTH - 2] + " …"


def _lines(one: Conflict) -> list[str]:
    return [
        f"{one.kind}: {one.what}",
        f"  saved: {_cut(one.saved, _VALUE_LENGTH) or '(not there)'}",
        f"  live:  {_cut(one.live, _VALUE_LENGTH) or '(not there)'}",
        f"  on going on: {_GOING_ON.get(one.kind, _GOING_ON['description'])}",
        "",
    ]


def _what_to_do(machine: str) -> list[str]:
    return [
        "Nothing of the machine has been touched yet.",
        "",
        f"To have it otherwise: edit {machine}.xml.* (libvirt's description) and {machine}.ldif.* (the directory's",
        "entry) beside this sheet; they must agree with each other. What stands in them is what is restored.",
        "To go on:    set sstProvisioningMode to unretainLargeFiles and sstProvisioningState to 0, or answer yes to",
        f"             vmkeep restore {machine}.",
        f"To back out: set sstProvisioningMode to finished, or run vmkeep abort {machine}. The files here are removed,",
        "             and the machine stays as it is.",
    ]


def _in_sentence(value: str) -> str:
    return _cut(value, 100) or "nothing"


def _cut(value: str, length: int) -> str:
    return value if len(value) <= length else value[: length - 2] + " …"


# elements


def _paired(
    saved: etree._Element, live: etree._Element, path: str, key: Callable[[etree._Element], str]
) -> list[tuple[str, etree._Element | None, etree._Element | None]]:
    ours = {key(element): element for element in saved.findall(path)}
    theirs = {key(element): element for element in live.findall(path)}
    return [(name, ours.get(name), theirs.get(name)) for name in dict.fromkeys((*ours, *theirs))]


def _filled(elements: list[etree._Element], length: int) -> list[etree._Element | None]:
    return [*elements, *([None] * (length - len(elements)))]


def _said(element: etree._Element | None) -> Meaning | None:
    return None if element is None else meaning(element)


def _without_source(disk: etree._Element) -> Meaning:
    tag, attributes, text, children = meaning(disk)
    return tag, attributes, text, tuple(child for child in children if child[0] != "source")


def _source(disk: etree._Element | None) -> Meaning | None:
    return None if disk is None else _said(disk.find("source"))


def _disk_shown(disk: etree._Element | None) -> str:
    if disk is None:
        return ""
    source = disk.find("source")
    return _attribute(source, "file") or shown(source) or "(no medium)"


def _target(disk: etree._Element) -> str:
    return _attribute(disk.find("target"), "dev")


def _in_short(element: etree._Element | None) -> str:
    if element is None:
        return ""
    size = bytes_of(element) if "emory" in str(element.tag) else 0
    if size:
        return f"{size >> 20} MiB" if size % (1 << 20) == 0 else f"{size} bytes"
    text = (element.text or "").strip()
    return text if text and len(element) == 0 else shown(element)


def _size(root: etree._Element) -> int:
    memory = root.find("memory")
    return 0 if memory is None else bytes_of(memory)


def _attribute(element: etree._Element | None, name: str) -> str:
    return "" if element is None else element.get(name, "")
