"""A machine under another name: nothing is shared with the old one that both would write."""

import re
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.host.description import describe, parse_xml
from nodeagent.restoring.another_name import (
    NewIdentity,
    new_mac,
    new_macs,
    new_nvram,
    new_paths,
    renamed_description,
    renamed_entries,
)
from tests.pure.restored_machine import CARD, DISK, UUID, description
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.names import Tree
from vmkeep.directory.alignment import read_saved
from vmkeep.directory.ldif_text import to_ldif
from vmkeep.directory.port import Entry

TREE = Tree("dc=example,dc=org")
NEW = NewIdentity(
    "twin", "99999999-2222-4333-8444-555555555555", ("52:54:00:00:00:01",), {"/images/m.qcow2": "/images/twin.qcow2"}
)


def test_the_new_machine_has_its_own_name_uuid_card_and_image() -> None:
    xml = renamed_description(description(), NEW)
    found = describe(xml)
    assert (found.name, found.uuid, [disk.source for disk in found.disks]) == (
        NEW.name,
        NEW.uuid,
        ["/images/twin.qcow2"],
    )
    assert NEW.macs is not None and NEW.macs[0] in xml
    assert not any(old in xml for old in (UUID, "m.qcow2", "52:54:00:aa:bb:cc", "<name>m<"))


def test_macs_are_kept_where_that_was_wished() -> None:
    xml = renamed_description(description(), NewIdentity("twin", NEW.uuid, None, NEW.paths))
    assert "52:54:00:aa:bb:cc" in xml and "link" not in xml


def test_isolated_cards_are_there_with_their_cables_out() -> None:
    cards = CARD + CARD.replace("<model", "<link state='up'/><model")
    isolated = NewIdentity("twin", NEW.uuid, None, NEW.paths, isolated=True)
    root = parse_xml(renamed_description(description(DISK + cards), isolated))
    assert [link.get("state") for link in root.findall("devices/interface/link")] == ["down", "down"]


def test_what_only_one_machine_can_have_is_given_up() -> None:
    devices = (
        "<serial type='file'><source path='/var/log/libvirt/m-serial.log'/></serial>"
        "<console type='pty'><log file='/var/log/libvirt/console.log'/></console>"
        "<channel type='unix'><source path='/var/lib/libvirt/qemu/channel/target/domain-1-m/x'/></channel>"
        "<graphics type='vnc' port='5901' autoport='no' websocket='5701'/>"
        "<vsock><cid auto='no' address='3'/></vsock>"
    )
    top = f"<sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo><genid>g</genid>"
    xml = renamed_description(
        description(DISK + CARD.replace("<model", "<target dev='tap-m'/><model") + devices, top=top), NEW
    )
    for gone in (UUID, "m-serial", '"/var/log/libvirt/console.log"', "domain-1-m", "5901", "5701", "tap-m", "genid"):
        assert gone not in xml
    for kept in ("twin-serial.log", "twin-console.log", 'autoport="yes"', 'cid auto="yes"', f">{NEW.uuid}</entry>"):
        assert kept in xml


def test_firmware_variables_are_its_own() -> None:
    xml = description(os="<nvram template='/t'>/nvram/m_VARS.fd</nvram>")
    own = NewIdentity("twin", NEW.uuid, None, NEW.paths, new_nvram("/nvram/m_VARS.fd", "m", "twin"))
    assert describe(renamed_description(xml, own)).nvram == "/nvram/twin_VARS.fd"
    assert describe(renamed_description(xml, NEW)).nvram is None


def test_a_writable_disk_without_a_new_place_is_refused() -> None:
    with pytest.raises(Refused, match="vda") as refusal:
        renamed_description(description(), NewIdentity("twin", NEW.uuid, None))
    assert refusal.value.code == ReturnValue.INCONSISTENT_DISKS


def test_nothing_of_the_old_machines_run_comes_along() -> None:
    chain = "<backingStore type='file'><source file='/images/below'/></backingStore></disk>"
    card = CARD.replace("network='default'", "network='default' portid='p-1'")
    xml = renamed_description(description(DISK.replace("</disk>", chain) + card), NEW)
    assert "/images/below" not in xml and "p-1" not in xml


def test_media_are_shared() -> None:
    medium = "<disk type='file' device='cdrom'><source file='/iso/m.iso'/><target dev='sda'/><readonly/></disk>"
    assert "/iso/m.iso" in renamed_description(description(DISK + CARD + medium), NEW)


# paths and addresses

_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
_files = st.one_of(
    _names, _names.map(lambda name: f"{name}.qcow2"), st.sampled_from(["m.qcow2", "twin.qcow2", "x-m-y"])
)
_paths = st.builds(lambda folder, name: f"/images/{folder}/{name}", st.sampled_from(["a", "b"]), _files)


@given(st.lists(_paths, max_size=4, unique=True), st.one_of(_names, st.just("m")), st.one_of(_names, st.just("twin")))
def test_new_paths_are_new_distinct_and_in_the_same_directories(paths: list[str], old: str, new: str) -> None:
    found = new_paths([(f"vd{number}", path) for number, path in enumerate(paths)], old, new)
    assert list(found) == paths
    assert len({*found.values(), *paths}) == 2 * len(paths)
    assert [path.rsplit("/", 1)[0] for path in found.values()] == [path.rsplit("/", 1)[0] for path in paths]
    assert all(new in path.rsplit("/", 1)[1] for path in found.values())


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/images/m.qcow2", "/images/twin.qcow2"),
        ("/images/m-vdb.qcow2", "/images/twin-vdb.qcow2"),
        ("/images/system.qcow2", "/images/twin-system.qcow2"),
        ("/images/m/disk.qcow2", "/images/m/twin-disk.qcow2"),
    ],
)
def test_a_file_is_named_after_the_new_machine(path: str, wanted: str) -> None:
    assert new_paths([("vda", path)], "m", "twin") == {path: wanted}


@given(st.binary(min_size=3, max_size=6))
def test_a_mac_is_of_qemus_range(random: bytes) -> None:
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", new_mac(random))


def test_cards_get_macs_that_differ_even_when_chance_repeats() -> None:
    numbers = count()
    macs = new_macs(description(CARD * 3), lambda length: bytes([next(numbers) // 2] * length))
    assert len(set(macs)) == 3


def test_too_few_random_bytes_make_no_mac() -> None:
    with pytest.raises(ValueError, match="three"):
        new_mac(b"ab")


# entries


def test_entries_move_below_the_new_machine_without_the_old_plan() -> None:
    own = TREE.machine("m")
    entries = [
        Entry(
            own, {"objectClass": ("top",), "sstVirtualMachine": ("m",), "sstDisplayName": ("Mail",), "sstNode": ("n",)}
        ),
        Entry(f"ou=devices,{own}", {"objectClass": ("top",), "ou": ("devices",)}),
        Entry(
            f"sstDisk=vda,ou=devices,{own}",
            {
                "objectClass": ("top",),
                "sstDisk": ("vda",),
                "sstSourceFile": ("/images/m.qcow2",),
                "sstVolumeName": ("m.qcow2",),
            },
        ),
        Entry(TREE.machine_plan("m"), {"objectClass": ("top",), "ou": ("backup",)}),
    ]
    renamed = renamed_entries(entries, "m", NEW, TREE)
    twin = TREE.machine("twin")
    assert [entry.dn for entry in renamed] == [twin, f"ou=devices,{twin}", f"sstDisk=vda,ou=devices,{twin}"]
    assert renamed[0].first("sstVirtualMachine") == "twin" and renamed[0].first("sstDisplayName") == "Mail"
    assert renamed[2].first("sstSourceFile") == "/images/twin.qcow2"
    assert renamed[2].first("sstVolumeName") == "twin.qcow2"
    assert read_saved(to_ldif(renamed), "twin", TREE) == renamed
