"""What differs between a saved machine and the live one: told when it means something, silent when it does not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.restoring.conflicts import (
    Conflict,
    as_json,
    as_text,
    compare_descriptions,
    compare_entries,
    hardware_differs,
    sentence,
)
from tests.pure.restored_machine import CARD, DISK, description
from vmkeep.contract.names import Tree
from vmkeep.directory.port import Entry

TREE = Tree("dc=example,dc=org")
OWN = TREE.machine("m")

SAME = {
    "an id": description().replace("<domain type", "<domain id='7' type"),
    "units": description().replace("<memory unit='KiB'>131072<", "<memory unit='MiB'>128<"),
    "a balloon at its size": description().replace("<currentMemory unit='MiB'>128</currentMemory>", ""),
    "a default said": description().replace("<vcpu placement='static'>", "<vcpu>"),
    "order of attributes": description().replace("name='qemu' type='qcow2'", "type='qcow2' name='qemu'"),
    "blanks and comments": description().replace("><", ">\n  <!-- x --><"),
    "order of devices": description(CARD + DISK),
    "aliases and addresses": description(
        DISK.replace("</disk>", "<alias name='virtio-disk0'/><address type='pci' slot='0x04'/></disk>") + CARD
    ),
    "a chain": description(
        DISK.replace("</disk>", "<backingStore type='file'><source file='/x'/></backingStore></disk>").replace(
            "m.qcow2'/>", "m.qcow2' index='1'/>"
        )
        + CARD
    ),
    "a card's tap": description(
        DISK + CARD.replace("network='default'", "network='default' portid='x' bridge='virbr0'").replace(
            "<model", "<target dev='vnet3'/><model"
        )
    ),
    "labels": description(top="<seclabel type='dynamic' model='dac'><label>+1:+1</label></seclabel><genid>x</genid>"),
}  # fmt: skip


@pytest.mark.parametrize("live", SAME.values(), ids=SAME)
def test_what_a_run_leaves_behind_is_no_difference(live: str) -> None:
    assert compare_descriptions(description(), live) == ()
    assert compare_descriptions(live, description()) == ()


@pytest.mark.parametrize(
    ("live", "kind", "what"),
    [
        (description(DISK.replace("m.qcow2", "other.qcow2") + CARD), "disk path", "vda"),
        (description(CARD), "disk path", "vda"),
        (description(DISK + DISK.replace("vda", "vdb") + CARD), "disk path", "vdb"),
        (description(DISK.replace("'virtio'/></disk>", "'sata'/></disk>") + CARD), "description", "disk vda"),
        (description(DISK + CARD.replace("cc'", "cd'")), "network", "network card 1"),
        (description(DISK + CARD.replace("default", "dmz")), "network", "network card 1"),
        (description(DISK), "network", "network card 1"),
        (description(DISK + CARD + CARD), "network", "network card 2"),
        (description().replace("131072", "262144").replace(">128<", ">256<"), "cpu or memory", "memory"),
        (description().replace(">128<", ">64<"), "cpu or memory", "currentMemory"),
        (description().replace(">2</vcpu>", ">4</vcpu>"), "cpu or memory", "vcpu"),
        (description(top="<cpu mode='host-passthrough'/>"), "cpu or memory", "cpu"),
        (description(DISK + CARD + "<serial type='pty'/>"), "description", "device serial"),
        (description(os="<boot dev='network'/>"), "description", "os"),
        (description().replace("<acpi/>", ""), "description", "features"),
        (description().replace("1111", "2222"), "description", "uuid"),
    ],
)
def test_a_difference_is_told_by_its_kind_and_only_once(live: str, kind: str, what: str) -> None:
    found = compare_descriptions(description(), live)
    assert [(one.kind, one.what) for one in found] == [(kind, what)]
    assert found[0].saved != found[0].live
    mirrored = compare_descriptions(live, description())
    assert [(one.saved, one.live) for one in mirrored] == [(found[0].live, found[0].saved)]


def test_the_order_of_booting_is_a_difference() -> None:
    first, second = ("<boot dev='hd'/><boot dev='network'/>", "<boot dev='network'/><boot dev='hd'/>")
    assert compare_descriptions(description(os=first), description(os=second))


def test_a_cpu_that_a_run_spelled_out_is_the_one_that_was_asked_for() -> None:
    asked = description(top="<cpu mode='host-model'><topology sockets='2'/></cpu>")
    spelled = description(
        top="<cpu mode='custom' match='exact' check='full'>"
        "<model>EPYC</model><topology sockets='2'/><feature name='x'/></cpu>"
    )
    assert compare_descriptions(asked, spelled) == ()
    assert compare_descriptions(asked, spelled.replace("sockets='2'", "sockets='1'"))


def test_a_machine_that_libvirt_does_not_know_is_told_as_that() -> None:
    assert [one.kind for one in compare_descriptions(description(), None)] == ["not defined"]


def test_a_password_is_never_shown() -> None:
    saved, live = (description(f"<graphics type='vnc' passwd='{word}'/>") for word in ("secret-1", "secret-2"))
    found = compare_descriptions(saved, live)
    assert found and "secret" not in as_json(found) + as_text("m", found) + sentence(found)


# entries


def _machine(**more: str) -> Entry:
    values = {"sstVirtualMachine": "m", "sstNode": "n1", "sstMemory": "1", **more}
    return Entry(OWN, {"objectClass": ("top",), **{name: (value,) for name, value in values.items()}})


def _disk(target: str, path: str) -> Entry:
    return Entry(
        f"sstDisk={target},ou=devices,{OWN}",
        {"objectClass": ("sstVirtualizationVirtualMachineDisk",), "sstDisk": (target,), "sstSourceFile": (path,)},
    )


def test_entries_are_compared_in_the_fields_words() -> None:
    saved = [_machine(sstNode="n2", sstDisplayName="A"), _disk("vda", "/a"), _disk("vdb", "/b")]
    live = [_machine(sstMemory="2", sstDisplayName="B"), _disk("vda", "/x"), _disk("vdc", "/c")]
    found = compare_entries(saved, live, "m", TREE)
    assert [(one.kind, one.what, one.saved, one.live) for one in found] == [
        ("node", "sstNode", "n2", "n1"),
        ("entry gone", "vdb", "/b", ""),
        ("cpu or memory", "m: sstMemory", "1", "2"),
        ("entry", "m: sstDisplayName", "A", "B"),
        ("disk path", "vda", "/a", "/x"),
        ("entry", "vdc", "", "/c"),
    ]


def test_equal_entries_and_a_machine_without_any() -> None:
    assert compare_entries([_machine()], [_machine(sstNode="N1")], "m", TREE) == ()
    assert [one.kind for one in compare_entries([_machine()], [], "m", TREE)] == ["entry gone"]


# whether the memory fits


@pytest.mark.parametrize(
    ("edited", "word"),
    [
        (description().replace("131072", "262144"), "memory"),
        (description().replace(">2</vcpu>", ">4</vcpu>"), "virtual CPUs"),
        (description(top="<cpu mode='host-passthrough'/>"), "CPU model"),
        (description().replace("pc-q35-7.2", "pc-i440fx-7.2"), "machine type"),
        (description(DISK + CARD.replace("cc'", "cd'")), "network cards"),
        (description(DISK + CARD.replace("'virtio'", "'e1000'")), "network cards"),
        (description(DISK), "network cards"),
        (description(DISK.replace("bus='virtio'", "bus='sata'") + CARD), "disks"),
        (description(DISK.replace("vda", "vdb") + CARD), "disks"),
    ],
)
def test_hardware_that_the_memory_would_not_know_is_told(edited: str, word: str) -> None:
    found = hardware_differs(description(), edited)
    assert len(found) == 1 and word in found[0]


@pytest.mark.parametrize(
    "edited",
    [
        *SAME.values(),
        description(DISK.replace("m.qcow2", "n.qcow2") + CARD),
        description(DISK + CARD.replace("default", "dmz")),
    ],
)
def test_memory_goes_on_where_only_the_host_sees_a_change(edited: str) -> None:
    assert hardware_differs(description(), edited) == ()


# telling

_words = st.text(max_size=700)
_conflicts = st.lists(st.builds(Conflict, st.sampled_from(["node", "disk path", "other"]), _words, _words, _words))


@given(_conflicts)
def test_one_sentence_is_one_line_of_less_than_500_characters(conflicts: list[Conflict]) -> None:
    told = sentence(conflicts)
    assert len(told) < 500 and len(told.splitlines()) == 1
    assert (told == "nothing differs") == (not conflicts)


@given(_conflicts)
def test_programs_read_every_conflict_whole(conflicts: list[Conflict]) -> None:
    assert [Conflict(**one) for one in json.loads(as_json(conflicts))] == conflicts


def test_people_read_what_differs_what_follows_and_how_to_back_out() -> None:
    text = as_text("m", [Conflict("node", "sstNode", "n2", "n1")])
    for wanted in ("node: sstNode", "saved: n2", "live:  n1", "on going on", "m.xml", "m.ldif", "vmkeep abort m"):
        assert wanted in text
    assert "mean the same" in as_text("m", [])


def test_a_machine_made_from_anothers_set_is_not_said_to_be_the_same() -> None:
    told = as_text("new", [], original="m")
    assert "mean the same" not in told
    assert "new: is made anew from the set of m" in told
