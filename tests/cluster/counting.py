"""What a guest that counts says of a backup: it never missed a number, over its own images."""

import libvirt
from lxml import etree

from lab import ticks
from lab.cluster import Lab
from lab.machines import Machine
from tests.cluster import sets


def assert_counts_without_a_gap(lab: Lab, machine: Machine) -> None:
    lab.wait_for_count(machine.name, 60, 60)
    log = ticks.read_serial(machine.serial)
    assert (log.missing, log.complaints) == ([], ())


def assert_runs_over_its_own_images(lab: Lab, machine: Machine) -> None:
    """It counted on all the time, in libvirt's live and persistent view over its own whole images, with no job left."""
    domain = machine.node.domain(machine.name)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert_counts_without_a_gap(lab, machine)
    own = [[str(path)] for path in machine.disks]
    assert chains(domain.XMLDesc()) == own
    assert chains(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == own
    assert [domain.blockJobInfo(target) for target in machine.targets] == [{}] * len(own)
    for disk in machine.disks:
        sets.assert_whole(disk)


def chains(xml: str) -> list[list[str]]:
    """Each disk's files, from the one that is written to downwards, and what a job copies it to."""
    disks = etree.fromstring(xml).findall("devices/disk")
    return [[str(source.get("file")) for source in disk.iter("source")] for disk in disks]
