"""Row `added-time`: what vmkeep adds to a whole backup of a tiny machine, beyond libvirt, qemu-img and file work.

The whole is the time from a leaf's `initialize` to its `finished` in a run of the real controller with a real agent.
The twin does by hand, on the same machine, one after another, just the calls no backup of this kind can do without.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import libvirt

from bench.alternating import in_turn
from bench.backups import STEP_LIMIT, Backups, backups_of
from bench.figures import Figure, differences, spread
from bench.session import Session
from lab import programs, services
from lab.cluster import Lab, LabOptions
from lab.errors import LabError
from lab.machines import Machine, MachineSpec
from lab.processes import start
from lab.waiting import until
from vmkeep.contract.leaf import Leaf

_BAR = 0.3
_START_LIMIT = 30.0
# A saved machine's XML ends its image chain at the overlay; without a word about it libvirt follows the image's header.
_ENDED_CHAIN = re.compile(r"\s*<backingStore\s*/>")


def measure(session: Session) -> Iterator[Figure]:
    """One figure, in seconds."""
    session.say("added-time: whole backups of a tiny machine")
    options = LabOptions(machine=MachineSpec(kind="bios"))
    with Lab(session.folder / "lab", options) as lab, backups_of(lab) as backups:
        machine = next(iter(lab.machines.values()))
        ours, raw = in_turn([partial(_whole, backups, machine), partial(_by_hand, machine)], session.runs)
    yield Figure(
        row="added-time",
        measured="what vmkeep adds to a whole backup, initialize → finished",
        amount=f"a machine with {machine.spec.memory} MiB of memory and an empty disk; vmkeep-controller run",
        twin="save, qemu-img create, link, rename, restore, blockPull, copy, fsync, by hand",
        value=spread(differences(ours, raw)),
        bar=_BAR,
        unit="s",
        ours=spread(ours),
        raw=spread(raw),
    )


# vmkeep


def _whole(backups: Backups, machine: Machine) -> float:
    lab = backups.lab
    known = {leaf.dn for leaf in backups.catalogue.leaves(machine.name)}
    while backups.next_change(limit=0.05) is not None:
        pass
    log = lab.folder / "log/run.log"
    command: list[str | Path] = [
        services.script("vmkeep-controller"),
        "--settings",
        lab.controller_settings,
        "run",
        machine.name,
    ]
    controller = start("controller run", command, log)
    try:
        begun = backups.next_change(limit=_START_LIMIT)
        if begun is None:
            raise LabError(f"vmkeep-controller run added no leaf: {log.read_text(errors='replace').strip()[-600:]}")
        return _finished(backups, machine, known) - begun
    finally:
        until("the end of vmkeep-controller run", lambda: not controller.alive, _START_LIMIT)


def _finished(backups: Backups, machine: Machine, known: set[str]) -> float:
    """When the machine's new leaf was seen to be finished."""
    deadline = time.monotonic() + STEP_LIMIT
    while time.monotonic() < deadline:
        new: list[Leaf] = [leaf for leaf in backups.catalogue.leaves(machine.name) if leaf.dn not in known]
        if any(leaf.is_good_backup for leaf in new):
            return time.monotonic()
        if failed := [leaf for leaf in new if leaf.is_failed]:
            raise LabError(f"{failed[0].dn} failed at {failed[0].raw_mode}: {failed[0].message}")
        backups.next_change()
    raise LabError(f"waited {STEP_LIMIT:g} s in vain for the backup of {machine.name}")


# by hand


def _by_hand(machine: Machine) -> float:
    retain, backup = machine.node.retain / "by-hand", machine.node.backup / "by-hand"
    for folder in (retain, backup):
        folder.mkdir()
    connection, domain = machine.node.connection(), machine.node.domain(machine.name)
    begun = time.monotonic()
    _snapshot(connection, domain, machine, retain)
    domain.blockPull("vda", 0, 0)
    until("the end of a block pull", lambda: not domain.blockJobInfo("vda", 0), STEP_LIMIT, step=0.002)
    for path in sorted(retain.iterdir()):
        path.rename(backup / path.name)
    _sync(backup)
    _sync(retain)
    taken = time.monotonic() - begun
    for folder in (retain, backup):
        shutil.rmtree(folder)
    return taken


def _snapshot(connection: Any, domain: Any, machine: Machine, retain: Path) -> None:
    image, state = machine.disks[0], machine.node.ram / "by-hand.state"
    kept, overlay = retain / image.name, image.with_suffix(".new")
    size = f"{machine.spec.disk_mib}M"
    programs.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", kept, "-F", "qcow2", overlay, size])
    domain.save(str(state))
    kept.hardlink_to(image)
    _sync(retain)
    overlay.replace(image)
    _sync(image.parent)
    xml = str(connection.saveImageGetXMLDesc(str(state), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))
    connection.restoreFlags(str(state), _ENDED_CHAIN.sub("", xml), libvirt.VIR_DOMAIN_SAVE_RUNNING)
    (retain / "state.xml").write_text(xml)
    _sync(retain / "state.xml")
    shutil.copyfile(state, retain / "state")
    _sync(retain / "state")
    state.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
