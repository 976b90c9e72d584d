"""The rules of a restore on descriptions as a real libvirt writes them: defined, running, and inside a state file."""

from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.hypervisor import Node
from lab.machines import MachineSpec
from lab.settings_files import write_agent_settings
from nodeagent.host.hypervisor import Hypervisor
from nodeagent.restoring.allowed import AllowedPlaces, refusals
from nodeagent.restoring.another_name import NewIdentity, new_macs, new_paths, renamed_description
from nodeagent.restoring.conflicts import compare_descriptions, hardware_differs
from vmkeep.service.settings import NodeAgentSettings, load

RICH = """<domain type='qemu'><name>rich</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
<features><acpi/><apic/></features><cpu mode='host-model'/><clock offset='utc'/>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>
<target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>
<serial type='pty'/><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='null'><target type='virtio' name='org.example.0'/></channel>
<graphics type='vnc' autoport='yes' passwd='secret'/><video><model type='vga'/></video>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<input type='tablet' bus='usb'/><watchdog model='i6300esb' action='reset'/><memballoon model='virtio'/>
</devices></domain>"""


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    return lab.nodes[sorted(lab.nodes)[0]]


@pytest.fixture(scope="module")
def places(lab: Lab, node: Node) -> AllowedPlaces:
    settings = load(NodeAgentSettings, write_agent_settings(node, lab.directory))
    return AllowedPlaces(
        settings.image_roots,
        settings.effective_nvram_roots,
        settings.readable_roots,
        settings.writable_roots,
        settings.emulators,
    )


def forms(node: Node, name: str, state_file: Path) -> dict[str, str]:
    """One machine's description as defined, while it runs, and inside its state file."""
    hypervisor = Hypervisor(node.uri, 60)
    try:
        view = hypervisor.look(name)
        assert view is not None and view.is_active
        found = {"defined": hypervisor.definition(name), "running": view.xml}
        hypervisor.save(name, str(state_file))
        return found | {"saved": hypervisor.saved_description(str(state_file))}
    finally:
        hypervisor.close()
        state_file.unlink(missing_ok=True)


def assert_all_mean_the_same(found: dict[str, str], places: AllowedPlaces) -> None:
    for one, xml in found.items():
        assert refusals(xml, places) == (), one
        for other, twin in found.items():
            assert compare_descriptions(xml, twin) == (), (one, other)
    assert hardware_differs(found["saved"], found["running"]) == ()


@pytest.mark.parametrize(
    "spec",
    [MachineSpec(kind="bios", disks=2, equal_basenames=True), MachineSpec(kind="uefi", state="paused", tpm=True)],
    ids=["bios", "uefi"],
)
def test_a_lab_machine_means_the_same_in_every_form_and_is_allowed(
    lab: Lab, node: Node, places: AllowedPlaces, spec: MachineSpec
) -> None:
    name = f"same-{spec.kind}"
    lab.add_machine(spec, name, node.name)
    assert_all_mean_the_same(forms(node, name, node.retain / f"{name}.state"), places)


def test_a_machine_with_many_devices_means_the_same_in_every_form_and_under_another_name(
    lab: Lab, node: Node, places: AllowedPlaces
) -> None:
    machine = lab.add_machine(MachineSpec(kind="bios", state="off"), "donor", node.name)
    image = machine.disks[0]
    domain = node.connection().defineXML(RICH.format(image=image))
    try:
        domain.create()
        found = forms(node, "rich", node.retain / "rich.state")
        assert_all_mean_the_same(found, places)
        identity = NewIdentity(
            "twin",
            "4a3e4a3e-0000-4000-8000-000000000001",
            new_macs(found["saved"], lambda count: bytes(range(count))),
            new_paths([("vda", str(image))], "rich", "twin"),
            isolated=True,
        )
        renamed = renamed_description(found["saved"], identity)
        assert refusals(renamed, places) == ()
        twin = node.connection().defineXML(renamed)
        try:
            defined = twin.XMLDesc(0)
            assert refusals(defined, places) == ()
            assert hardware_differs(found["saved"], defined) == (
                "network cards: 52:54:00:11:22:33 virtio saved, 52:54:00:00:01:02 virtio wanted",
            )
            assert "<link state='down'/>" in defined and str(image) not in defined
        finally:
            twin.undefine()
    finally:
        domain.undefine()
