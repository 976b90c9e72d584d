"""A set's memory with another description inside than the one that was checked: nothing comes of it.

Whoever changed the set changed its manifest with it, and the digest on the leaf: a node that was taken over can.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from tests.changed_state import EMULATOR, changed
from tests.cluster.stolen import Stolen
from tests.watched_files import watched


@pytest.fixture
def stolen(stolen_set: Stolen) -> Iterator[Stolen]:
    """Its set is whole again afterwards, and the machine was never stopped."""
    pid = stolen_set.machine.node.qemu(stolen_set.machine.name)
    state = stolen_set.state(stolen_set.folder)
    content = state.read_bytes()
    yield stolen_set
    state.write_bytes(content)
    stolen_set.vouch()
    stolen_set.back_out()
    assert stolen_set.machine.node.qemu(stolen_set.machine.name) == pid


@pytest.fixture
def evil(stolen_set: Stolen) -> Path:
    """A program on the storage that says when it was run."""
    path = stolen_set.machine.node.images / "evil"
    path.write_text(f"#!/bin/sh\ntouch {path}.was-run\nexit 1\n")
    path.chmod(0o755)
    return path


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a host's directory": (
        lambda xml: xml.replace(
            b"</devices>", b"<filesystem type='mount'><source dir='/'/><target dir='r'/></filesystem></devices>"
        ),
        "<filesystem>",
    ),
    "QEMU options": (
        lambda xml: xml.replace(
            b"</domain>",
            b"<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-s'/></q:commandline>"
            b"</domain>",
        ),
        "commandline",
    ),
    "an entity": (
        lambda xml: b"<!DOCTYPE domain [<!ENTITY e SYSTEM 'file:///etc/hostname'>]>" + xml,
        "declares a document type",
    ),
    "no XML": (lambda xml: b"<domain" + b" " * (len(xml) - 7), "cannot be read"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_not_allowed_inside_is_refused_before_anything_is_copied(case: str, stolen: Stolen) -> None:
    change, reason = CHANGES[case]
    changed(stolen.state(stolen.folder), change)
    stolen.vouch()
    assert stolen.ask("restore-small-files", "unretainedSmallFiles")[:2] == ("unretainedSmallFiles", 0)
    _, code, message = stolen.ask("restore-large-files", "unretainedLargeFiles")
    assert code == 107, message
    assert "the description inside" in message
    assert reason in message
    assert list(stolen.retain.glob("*.state*")) == []


def test_an_emulator_named_inside_is_never_run_not_even_to_ask_what_it_can_do(stolen: Stolen, evil: Path) -> None:
    changed(stolen.state(stolen.folder), lambda xml: xml.replace(EMULATOR, os.fsencode(evil)))
    stolen.vouch()
    assert stolen.ask("restore-small-files", "unretainedSmallFiles")[1] == 0
    _, code, message = stolen.ask("restore-large-files", "unretainedLargeFiles")
    assert not evil.with_name("evil.was-run").exists()
    assert code == 107, message
    assert str(evil) in message


def test_an_emulator_put_inside_after_the_copy_is_never_run_either(stolen: Stolen, evil: Path) -> None:
    assert stolen.ask("restore-small-files", "unretainedSmallFiles")[1] == 0
    assert stolen.ask("restore-large-files", "unretainedLargeFiles")[1] == 0
    changed(stolen.state(stolen.retain), lambda xml: xml.replace(EMULATOR, os.fsencode(evil)))
    _, code, message = stolen.ask("restore", "restored")
    assert not evil.with_name("evil.was-run").exists()
    assert code == 107, message


def test_another_disk_inside_is_never_opened_the_edited_description_holds(stolen_set: Stolen) -> None:
    """libvirt compares what a guest would see, which a path is not, and acts on the description it is handed."""
    machine = stolen_set.machine
    outside = machine.node.folder / "outside"
    outside.mkdir()
    victim = outside / "d"
    victim.write_bytes(b"of the host")
    disk = os.fsencode(machine.disks[0])
    changed(stolen_set.state(stolen_set.folder), lambda xml: xml.replace(disk, os.fsencode(victim)))
    stolen_set.vouch()
    with watched(outside) as seen:
        for edit, done in (
            ("restore-small-files", "unretainedSmallFiles"),
            ("restore-large-files", "unretainedLargeFiles"),
            ("restore", "restored"),
        ):
            mode, code, message = stolen_set.ask(edit, done)
            assert (mode, code) == (done, 0), message
        assert seen.events() == set()
    stolen_set.plain.finish(machine.name, stolen_set.leaf)
    domain = machine.node.domain(machine.name)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert os.fsdecode(victim) not in domain.XMLDesc()
    assert str(machine.disks[0]) in domain.XMLDesc()
    assert victim.read_bytes() == b"of the host"
