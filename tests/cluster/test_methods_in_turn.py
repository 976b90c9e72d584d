"""One machine, ten backups by changing methods: each is of its own instant, and each brings the machine back."""

import itertools
import random

from lab import ticks
from lab.cluster import Lab
from lab.machines import Machine, MachineSpec
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.plain import Plain
from tests.cluster.test_methods import assert_nothing_left, with_method
from tests.cluster.test_restore import assert_cleared, definition

METHODS = ("save", "live", "disk", "live", "save", "disk", "disk", "save", "auto", "live")
SEED = 20261121


def test_ten_backups_by_changing_methods_each_bring_the_machine_back(agents: Lab, plain: Plain) -> None:
    machine = agents.add_machine(MachineSpec(disks=2))
    with_method(plain, machine, METHODS[0], sstBackupNumberOfIterations="10")
    described = definition(machine)
    instants = {leaf: instant_of(machine, leaf) for leaf in backed_up_by_each(agents, plain, machine)}
    assert sorted(instants.values()) == list(instants.values()), "each is of a later instant"
    assert ticks.read_serial(machine.serial).missing == [], "the guest lost nothing by any of them"
    for leaf in random.Random(SEED).sample(list(instants), len(instants)):
        assert restored_to(agents, plain, machine, leaf) in (instants[leaf], instants[leaf] + 1), leaf
        assert definition(machine) == described
        assert_nothing_left(machine, leaf)
    for leaf in instants:
        sets.assert_digests(sets.directory_of(machine, leaf))


def backed_up_by_each(lab: Lab, plain: Plain, machine: Machine) -> list[str]:
    leaves = []
    for method in METHODS:
        plain.modify(plain.lab.tree.machine_plan(machine.name), f"replace vmkeepMethod {method}")
        lab.wait_for_count(machine.name, 10)
        leaves.append(plain.back_up(machine.name))
        used = "live" if method == "auto" else method
        assert plain.leaf(machine.name, leaves[-1])["vmkeepMethod"] == [used]
        assert_nothing_left(machine, leaves[-1])
    return leaves


def instant_of(machine: Machine, leaf: str) -> int:
    """The newest record on the set's disks, which were written in turn."""
    folder = sets.directory_of(machine, leaf)
    disks = [folder / file["name"] for file in sets.manifest(folder)["files"] if file["role"] == "disk"]
    newest = [ticks.newest_on_disk(disk) for disk in disks]
    assert max(newest) - min(newest) <= 1, "all disks are of one instant"
    return max(newest)


def restored_to(lab: Lab, plain: Plain, machine: Machine, leaf: str) -> int:
    """Restore; the count that the guest went on from, where it goes on counting and reads what it wrote."""
    offset = machine.serial.stat().st_size
    lab.wait_for_count(machine.name, 5)
    plain.restore(machine.name, leaf)
    until("the guest to count on from the set", lambda: jumps(machine, offset), 60)
    lab.wait_for_count(machine.name, 10)
    (target,) = jumps(machine, offset)
    assert " BAD" not in machine.serial.read_text(errors="replace")[offset:]
    assert_cleared(machine)
    return target


def jumps(machine: Machine, offset: int) -> list[int]:
    """Where the guest did not simply count on."""
    counted = ticks.counts_since(machine.serial, offset)
    return [after for before, after in itertools.pairwise(counted) if after != before + 1]
