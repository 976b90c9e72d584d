"""What libvirt is never given: each hostile description is refused for its own reason, and honest ones pass."""

# ruff: noqa: E501 - the tables read best with one case a line

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.guest_image import GuestImage
from lab.hypervisor import Node
from lab.machines import MachineSpec, domain_xml, plan_machine
from nodeagent.restoring.allowed import AllowedPlaces, check_edited, is_below, peculiarities, refusals
from tests.pure.restored_machine import CARD, DISK, PLACES, UUID, description
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.port import Entry

HONEST = {
    "plain": description(),
    "firmware": description(
        os="<loader readonly='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader>"
        "<nvram template='/usr/share/OVMF/VARS.fd'>/nvram/m_VARS.fd</nvram>"
    ),
    "kernel": description(
        os="<kernel>/boot-files/k</kernel><initrd>/boot-files/i</initrd><cmdline>/init root=/dev/vda</cmdline>"
    ),
    "empty cdrom": description(DISK + "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"),
    "medium": description(
        DISK + "<disk type='file' device='cdrom'><source file='/boot-files/x.iso'/><target dev='sda'/></disk>"
    ),
    "consoles": description(
        DISK + "<serial type='pty'><source path='/dev/pts/3'/></serial><console type='pty' tty='/dev/pts/3'/>"
        "<serial type='file'><source path='/var/log/libvirt/m.log' append='on'/></serial>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        "<serial type='tcp'><source mode='bind' host='127.0.0.1' service='7000'/></serial>"
    ),
    "rest": description(
        DISK + CARD + "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><vsock model='virtio'><cid auto='yes'/></vsock>"
        "<graphics type='vnc' port='-1' autoport='yes'/><memballoon model='virtio'/>",
        top="<metadata><x:a xmlns:x='urn:x'>/etc/passwd</x:a></metadata><title>/a</title>"
        "<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>"
        "<resource><partition>/machine</partition></resource>",
    ),
    "ended chain": description(DISK.replace("</disk>", "<backingStore/><alias name='virtio-disk0'/></disk>")),
    "a comment": description(top="<!-- the admin was here -->"),
}

_LAUGHS = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 12))
_HOSTDEV = "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='2' function='0'/></source></hostdev>"
HOSTILE = {
    "an entity": ("<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/shadow'>]>" + description(top="<title>&x;</title>"), "document type"),
    "billion laughs": (f"<!DOCTYPE d [<!ENTITY l0 'ha'>{_LAUGHS}]>" + description(top="<title>&l11;</title>"), "cannot be read"),
    "an external DTD": ("<!DOCTYPE domain SYSTEM 'http://127.0.0.1:1/x.dtd'>" + description(), "document type"),
    "no XML": ("<domain", "cannot be read"),
    "nothing": ("", "cannot be read"),
    "a container": ("<domain type='lxc'/>", "kvm or qemu"),
    "another namespace": ("<domain xmlns='urn:x' type='kvm'/>", "kvm or qemu"),
    "QEMU options": (
        description().replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ").replace(
            "</domain>", "<qemu:commandline><qemu:arg value='-s'/></qemu:commandline></domain>"
        ),
        "commandline",
    ),
    "a foreign emulator": (description().replace("qemu-system-x86_64", "env"), "emulator"),
    "an emulator around a comment": (description().replace("x86_64</emu", "x86_64<!-- -->/../evil</emu"), "emulator"),
    "an emulator beside an element": (description().replace("<emulator>", "<emulator><a/>/bin/sh"), "emulator"),
    "a host device": (description(_HOSTDEV), "<hostdev>"),
    "shared memory": (description("<shmem name='x'/>"), "<shmem>"),
    "a folder": (description("<filesystem type='mount'><source dir='/'/><target dir='r'/></filesystem>"), "<filesystem>"),
    "a lease": (description("<lease><key>k</key><target path='/x'/></lease>"), "<lease>"),
    "a USB device": (description("<redirdev bus='usb' type='dev'><source path='/dev/x'/></redirdev>"), "redirdev"),
    "NVDIMM": (description("<memory model='nvdimm'><source><path>/images/m</path></source></memory>"), "memory device"),
    "a disk elsewhere": (description(DISK.replace("/images/", "/etc/")), "outside /images"),
    "a disk above": (description(DISK.replace("/images/", "/images/../etc/")), "outside /images"),
    "a disk that is the root": (description(DISK.replace("/images/m.qcow2", "/images")), "outside /images"),
    "a disk with a sibling's root": (description(DISK.replace("/images/", "/images-of-others/")), "outside"),
    "a relative disk": (description(DISK.replace("/images/", "images/")), "outside"),
    "a disk that is JSON": (description(DISK.replace("/images/m.qcow2", "json:{}")), "outside"),
    "a writable disk among media": (description(DISK.replace("/images/", "/boot-files/")), "outside"),
    "a writable floppy among media": (
        description("<disk type='file' device='floppy'><source file='/boot-files/f'/><target dev='fda'/></disk>"),
        "outside",
    ),
    "a block device": (description(DISK.replace("type='file'", "type='block'").replace("file='/images/m.qcow2'", "dev='/dev/sda'")), "type block"),
    "a network disk": (
        description("<disk type='network'><source protocol='nbd' name='x'><host name='h'/></source><target dev='vda'/></disk>"),
        "type network",
    ),
    "a volume": (description("<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>"), "type volume"),
    "two sources": (description(DISK.replace("<target", "<source file='/images/n'/><target")), "more than one <source>"),
    "a backing chain": (
        description(DISK.replace("</disk>", "<backingStore type='file'><format type='raw'/><source file='/etc/shadow'/></backingStore></disk>")),
        "backing chain",
    ),
    "a mirror": (description(DISK.replace("</disk>", "<mirror type='file' file='/images/x'/></disk>")), "<mirror>"),
    "a LUN": (description(DISK.replace("device='disk'", "device='lun' rawio='yes'")), "rawio"),
    "a helper's socket": (
        description(DISK.replace("m.qcow2'/>", "m.qcow2'><reservations managed='no'/></source>")),
        "<reservations>",
    ),
    "a kernel elsewhere": (description(os="<kernel>/etc/shadow</kernel>"), "readable_roots"),
    "an initrd above": (description(os="<initrd>/boot-files/../etc/shadow</initrd>"), "readable_roots"),
    "a loader elsewhere": (description(os="<loader>/images/x</loader>"), "readable_roots"),
    "NVRAM elsewhere": (description(os="<nvram>/etc/cron.d/x</nvram>"), "nvram_roots"),
    "an NVRAM template elsewhere": (description(os="<nvram template='/etc/shadow'>/nvram/x</nvram>"), "readable_roots"),
    "NVRAM on the network": (description(os="<nvram type='network'><source protocol='nbd'/></nvram>"), "NVRAM of type"),
    "an ACPI table elsewhere": (description(os="<acpi><table type='slic'>/etc/shadow</table></acpi>"), "readable_roots"),
    "a container's init": (description(os="<init>/bin/sh</init>"), "<init>"),
    "a file for the firmware": (
        description(top="<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>"),
        "readable_roots",
    ),
    "a boot loader": (description(top="<bootloader>/bin/sh</bootloader>"), "<bootloader>"),
    "a card's script": (description(CARD.replace("<model", "<script path='/tmp/x'/><model")), "script"),
    "a card of the host": (description(CARD.replace("type='network'", "type='hostdev'")), "type hostdev"),
    "a card of another program": (description(CARD.replace("type='network'", "type='vhostuser'")), "type vhostuser"),
    "a card's ROM": (description(CARD.replace("<model", "<rom file='/etc/shadow'/><model")), "readable_roots"),
    "a card's device": (description(CARD.replace("<model", "<backend vhost='/dev/mem'/><model")), "/dev/vhost-net"),
    "a host's terminal": (description("<serial type='dev'><source path='/dev/ttyS0'/></serial>"), "type dev"),
    "a pipe": (description("<serial type='pipe'><source path='/tmp/x'/></serial>"), "type pipe"),
    "a log elsewhere": (description("<serial type='file'><source path='/etc/passwd'/></serial>"), "writable_roots"),
    "a console's log": (description("<console type='pty'><log file='/etc/passwd'/></console>"), "writable_roots"),
    "a terminal that is a file": (description("<serial type='pty'><source path='/etc/passwd'/></serial>"), "writable_roots"),
    "the host's services": (description("<channel type='unix'><source mode='connect' path='/run/docker.sock'/></channel>"), "writable_roots"),
    "a call out": (description("<serial type='tcp'><source mode='connect' host='127.0.0.1' service='1'/></serial>"), "listens"),
    "an open port": (description("<serial type='tcp'><source mode='bind' host='0.0.0.0' service='1'/></serial>"), "listens"),
    "UDP": (description("<serial type='udp'/>"), "type udp"),
    "a host's TPM": (description("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"), "TPM"),
    "randomness from a file": (description("<rng><backend model='random'>/etc/shadow</backend></rng>"), "/dev/urandom"),
    "randomness from a daemon": (description("<rng><backend model='egd' type='unix'/></rng>"), "egd"),
    "the host's keyboard": (description("<input type='evdev'><source dev='/dev/input/event0'/></input>"), "input device"),
    "the host's screen": (description("<graphics type='sdl' xauth='/home/admin/.Xauthority'/>"), "type sdl"),
    "the host's GPU": (description("<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>"), "path where none"),
    "the host's smartcard": (description("<smartcard mode='host'/>"), "smartcard"),
    "a fixed label": (description(top="<seclabel type='static' model='dac'><label>root:root</label></seclabel>"), "seclabel"),
    "no confinement": (description(top="<seclabel type='none' model='apparmor'/>"), "seclabel"),
    "a base label": (description(top="<seclabel type='dynamic' model='selinux'><baselabel>x</baselabel></seclabel>"), "seclabel"),
    "a disk's label": (description(DISK.replace("m.qcow2'/>", "m.qcow2'><seclabel><label>x</label></seclabel></source>")), "seclabel"),
    "two names": (description(top="<name>other</name>"), "<name> stands there 2 times"),
    "a name in parts": (description(name="m<x/>"), "text and elements"),
    "two sets of devices": (description(top=f"<devices>{_HOSTDEV}</devices>"), "<devices> stands there 2 times"),
    "a path where nobody looks": (description(top="<cpu><x y='/etc/shadow'/></cpu>"), "path where none"),
    "a disk of another program": (description(DISK.replace("name='qemu'", "name='vhostuser'")), "vhostuser"),
    "a descriptor": (description(DISK.replace("m.qcow2'", "m.qcow2' fdgroup='x'")), "fdgroup"),
    "a TPM kept elsewhere": (description("<tpm><backend type='emulator'><source type='file' path='x'/></backend></tpm>"), "TPM with a place"),
    "a card's log": (description(CARD.replace("<model", "<backend type='passt' logFile='x'/><model")), "log file"),
    "the host's sound": (description("<audio id='1' type='alsa'/>"), "type alsa"),
    "a foreign attribute": (description(top="<cpu xmlns:q='urn:q' q:x='1'/>"), "foreign namespace"),
}  # fmt: skip


@pytest.mark.parametrize("xml", HONEST.values(), ids=HONEST)
def test_an_honest_description_passes(xml: str) -> None:
    assert refusals(xml, PLACES) == ()


@pytest.mark.parametrize(("xml", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused_for_its_reason(xml: str, reason: str) -> None:
    assert [said for said in refusals(xml, PLACES) if reason in said]


def test_all_reasons_are_told_at_once() -> None:
    both = description(_HOSTDEV + DISK.replace("/images/", "/etc/"), os="<kernel>/etc/shadow</kernel>")
    assert len(refusals(both, PLACES)) == 3


def test_a_description_that_is_endless_is_not_even_read() -> None:
    assert "longer than" in refusals(" " * (5 << 20), PLACES)[0]


@pytest.mark.parametrize("kind", ["linux", "bios", "uefi"])
def test_the_labs_machines_pass(kind: str) -> None:
    node = Node("n1", Path("/lab/nodes/n1"))
    xml = domain_xml(
        plan_machine("m", node, MachineSpec(kind=kind, disks=2, tpm=True)),
        GuestImage(Path("/lab/boot/vmlinuz"), Path("/lab/boot/initramfs")),
    )
    nvram = (f"{node.libvirt_state}/qemu/nvram",)
    readable = ("/lab/boot", "/usr/share/OVMF")
    places = AllowedPlaces((str(node.images),), nvram, readable, (f"{node.folder}/serial",), PLACES.emulators)
    assert refusals(xml, places) == ()


@given(st.text())
def test_any_text_gets_reasons(text: str) -> None:
    assert refusals(text, PLACES)


@example("/images//b.qcow2")
@example("/images/./b.qcow2")
@example("/images/a/")
@given(st.lists(st.sampled_from(["..", ".", "", "images", "a", "/", "b.qcow2"]), max_size=6).map("/".join))
def test_what_is_below_a_root_lies_there_when_the_path_is_walked(path: str) -> None:
    if is_below(path, ["/images"]):
        assert path.startswith("/images/") and not {"", ".", ".."} & set(path.split("/")[1:])


# edited files


def _entries(path: str = "/images/m.qcow2", **more: tuple[str, ...]) -> list[Entry]:
    classes = ("top", "sstVirtualizationVirtualMachineDisk")
    return [Entry("sstDisk=vda", {"objectClass": classes, "sstDisk": ("vda",), "sstSourceFile": (path,), **more})]


FILES = "m.xml.20260101T000000Z", "m.ldif.20260101T000000Z"
MEDIUM = "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"


def test_files_that_agree_pass() -> None:
    check_edited(description(DISK + MEDIUM), _entries(), "m", UUID.upper(), FILES)


@pytest.mark.parametrize(
    ("xml", "entries", "machine", "code"),
    [
        ("<domain", _entries(), "m", ReturnValue.CANNOT_READ_XML),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]>" + description(), _entries(), "m", ReturnValue.CANNOT_READ_XML),
        (description(), _entries(), "other", ReturnValue.CANNOT_READ_XML),
        (description().replace(UUID, UUID.replace("1", "2")), _entries(), "m", ReturnValue.CANNOT_READ_XML),
        (description(), _entries("/images/other.qcow2"), "m", ReturnValue.INCONSISTENT_DISKS),
        (description(), [], "m", ReturnValue.INCONSISTENT_DISKS),
        (description(), _entries(sstReadonly=("TRUE",)), "m", ReturnValue.INCONSISTENT_DISKS),
        (description(MEDIUM), _entries(), "m", ReturnValue.INCONSISTENT_DISKS),
        (description(MEDIUM), [], "m", ReturnValue.INCONSISTENT_DISKS),
    ],
)
def test_files_that_do_not_fit_are_refused(xml: str, entries: list[Entry], machine: str, code: ReturnValue) -> None:
    with pytest.raises(Refused, match=rf"^{machine}: ") as refusal:
        check_edited(xml, entries, machine, UUID, FILES)
    assert refusal.value.code == code
    assert "m.xml.20260101T000000Z" in refusal.value.sentence


def test_what_a_description_names_beyond_others_is_told_and_chains_do_not_count() -> None:
    known = peculiarities(description())
    chain = "<backingStore type='file'><format type='qcow2'/><source file='/below'/><backingStore/></backingStore>"
    assert peculiarities(description(DISK.replace("</disk>", f"{chain}</disk>") + CARD)) == known
    for other in (
        description(DISK.replace("/images/m.qcow2", "/images/other.qcow2") + CARD),
        description().replace("/usr/bin/qemu-system-x86_64", "/bin/sh"),
        description(DISK + CARD + "<hostdev mode='subsystem' type='pci'/>"),
        "no XML",
    ):
        assert not set(peculiarities(other)) <= set(known)
