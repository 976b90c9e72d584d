"""The description of one machine, for tests of what a restore makes of it."""

from nodeagent.restoring.allowed import AllowedPlaces

UUID = "11111111-2222-4333-8444-555555555555"
PLACES = AllowedPlaces(
    image_roots=("/images",),
    nvram_roots=("/nvram",),
    readable_roots=("/usr/share/OVMF", "/boot-files"),
    writable_roots=("/var/log/libvirt",),
    emulators=("/usr/bin/qemu-system-x86_64",),
)
DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/m.qcow2'/>"
    "<target dev='vda' bus='virtio'/></disk>"
)
CARD = (
    "<interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='default'/>"
    "<model type='virtio'/></interface>"
)


def description(devices: str = DISK + CARD, os: str = "", top: str = "", name: str = "m") -> str:
    """A machine with these devices, and more elements of <os> and <domain>."""
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{UUID}</uuid><memory unit='KiB'>131072</memory>"
        "<currentMemory unit='MiB'>128</currentMemory><vcpu placement='static'>2</vcpu>"
        f"<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>{os}</os><features><acpi/></features>"
        "<clock offset='utc'/>"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices>{top}</domain>"
    )
