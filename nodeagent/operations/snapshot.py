"""Snapshot: save memory and disks of one instant and let the machine run on.

    leftovers → directories → entry → the instant → description → state → making

What can be prepared is done before the instant, what can wait after it. Taking back leaves the machine as it was.
"""

import os
from contextlib import AbstractContextManager
from functools import partial
from pathlib import PurePosixPath

from nodeagent.host.copying import AT_ONCE, Pace, copy_file, digest_file
from nodeagent.host.description import with_sources, without_chains
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, make_folder, open_folder, remove_empty, remove_file
from nodeagent.operations import saved_memory
from nodeagent.operations.instants import instant
from nodeagent.operations.leftovers import finish_earlier
from nodeagent.operations.making import NAME as MAKING_NAME
from nodeagent.operations.making import MadeFile, Making, write_making
from nodeagent.order import Order
from nodeagent.steps import NO_FACTS, Facts, Host, Step, access
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Consistency
from vmkeep.contract.paths import STAND_IN_STATE

_PRIVATE = Access(mode=0o600)


def snapshot(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps of a snapshot."""
    files, finish = _Files(order, host), partial(finish_earlier, order, host)
    before = (
        Step("leftovers", "finish an earlier backup's merge", ReturnValue.CANNOT_MERGE, finish),
        Step("directories", "make the retain directory", ReturnValue.CANNOT_CREATE_DIRECTORY, files.make_directory)
        .undone_by(files.remove_directory),
        Step("entry", "keep the directory entry", ReturnValue.CANNOT_SAVE_BACKEND_ENTRY, files.write_entry)
        .undone_by(files.remove_entry),
    )  # fmt: skip
    after = (
        Step("description", "keep the machine's description", ReturnValue.CANNOT_SAVE_XML, files.write_description)
        .undone_by(files.remove_description),
        Step("state", "keep the machine's memory", ReturnValue.CANNOT_COPY_STATE_TO_RETAIN, files.keep_state)
        .undone_by(files.remove_state),
        Step("making", "note what the set holds", ReturnValue.CANNOT_WRITE_TO_BACKUP, files.write_making)
        .undone_by(files.remove_making),
    )  # fmt: skip
    firmware = (
        Step("firmware", "keep the firmware's files", ReturnValue.CANNOT_COPY_FILE, files.keep_firmware)
        .undone_by(files.remove_firmware),
    ) if order.firmware else ()  # fmt: skip
    return (*before, *instant(order, host, firmware), *after)


def _consistency(order: Order, facts: Facts) -> Consistency:
    """What the set is worth. Nothing is called quiesced that is not known to have been."""
    if order.power is Power.OFF:
        return "off"
    if order.has_memory:
        return "state"
    return "quiesced" if facts.get("consistency") == "quiesced" else "crash"


class _Files:
    """The files of the set in the making. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host
        self._paths = order.paths

    def make_directory(self, _facts: Facts) -> Facts:
        with make_folder(self._paths.retain, self._host.roots, access(self._order.directories)) as retain:
            retain.sync()
        return NO_FACTS

    def remove_directory(self, _facts: Facts) -> Facts:
        remove_empty(self._paths.retain, self._paths.retain_root, self._host.roots)
        return NO_FACTS

    def write_entry(self, _facts: Facts) -> Facts:
        return self._write(self._paths.ldif, self._order.ldif)

    def remove_entry(self, _facts: Facts) -> Facts:
        return self._remove(self._paths.ldif)

    def write_description(self, facts: Facts) -> Facts:
        if not self._order.has_memory:
            xml = self._host.hypervisor.description_to_keep(self._order.machine)
            images = {disk.target: disk.path for disk in self._order.disks}
            return self._write(self._paths.xml, with_sources(without_chains(xml), images), _PRIVATE)
        state = PurePosixPath(str(facts["state_path"]))
        inside = saved_memory.description(self._host, state, self._order.peculiar)
        return self._write(self._paths.xml, without_chains(inside), _PRIVATE)

    def remove_description(self, _facts: Facts) -> Facts:
        return self._remove(self._paths.xml)

    def keep_firmware(self, _facts: Facts) -> Facts:
        for item in self._order.firmware:
            path = PurePosixPath(item.path)
            with self._retain() as retain, open_folder(path.parent, self._host.roots) as source:
                retain.remove(item.kept)
                copy_file((source, path.name), (retain, item.kept), _PRIVATE, pace=AT_ONCE)
        return NO_FACTS

    def remove_firmware(self, _facts: Facts) -> Facts:
        for item in self._order.firmware:
            self._remove(item.kept)
        return NO_FACTS

    def keep_state(self, facts: Facts) -> Facts:
        if not self._order.has_memory:
            # No line end when written: older tools compare the whole content.
            return self._write(self._paths.state, STAND_IN_STATE, _PRIVATE)
        saved, pace = PurePosixPath(str(facts["state_path"])), Pace(stop=self._host.stop)  # the machine runs by now
        with self._retain() as retain, open_folder(saved.parent, self._host.roots) as source:
            if source.exists(saved.name) and saved.parent != self._paths.retain:
                retain.remove(self._paths.state)
                content = copy_file((source, saved.name), (retain, self._paths.state), _PRIVATE, pace=pace)
                source.remove(saved.name)
            else:
                self._require_whole_state(retain)
                content = digest_file(retain, self._paths.state, pace=pace)
                with retain.opened(self._paths.state) as descriptor:
                    _PRIVATE.apply(descriptor)
                    os.fsync(descriptor)  # libvirt wrote it
        return {"state_size": content.size, "state_digest": content.digest}

    def _require_whole_state(self, retain: Folder) -> None:
        """libvirt makes the data durable, but not its word that it is whole; power may have been lost in between."""
        if not saved_memory.is_complete(self._host, self._paths.retain / self._paths.state):
            raise HostFailure(f"{retain.path / self._paths.state} is missing or not whole: it was not yet on the disk")

    def remove_state(self, _facts: Facts) -> Facts:
        for candidate in self._order.state_candidates:
            if candidate.parent.name == self._order.timestamp:
                self._remove(candidate.name)
        return NO_FACTS

    def write_making(self, facts: Facts) -> Facts:
        with self._retain() as retain:
            write_making(retain, self._making(facts))
        return NO_FACTS

    def remove_making(self, _facts: Facts) -> Facts:
        return self._remove(MAKING_NAME)

    def _making(self, facts: Facts) -> Making:
        order = self._order
        state = MadeFile(
            name=self._paths.state,
            role="state",
            size=int(facts["state_size"]) if order.has_memory else None,
            digest=str(facts["state_digest"]) if order.has_memory else None,
        )
        texts = (MadeFile(name=self._paths.xml, role="xml"), MadeFile(name=self._paths.ldif, role="ldif"))
        disks = tuple(
            MadeFile(name=disk.kept, role="disk", target=disk.target, original_path=disk.path) for disk in order.disks
        )
        firmware = tuple(
            MadeFile.model_validate({"name": item.kept, "role": item.role, "original_path": item.path})
            for item in order.firmware
        )
        return Making(
            machine=order.machine,
            uuid=order.uuid,
            timestamp=order.timestamp,
            node=self._host.node,
            power=order.power,
            method=order.method,
            consistency=_consistency(order, facts),
            files=(state, *texts, *disks, *firmware),
            versions=dict(self._host.versions) | self._host.hypervisor.versions(),
            renames=order.route.renames,
        )

    def _write(self, name: str, text: str, extra: Access | None = None) -> Facts:
        with self._retain() as retain:
            retain.write(name, text.encode(), extra or access(self._order.files))
        return NO_FACTS

    def _remove(self, name: str) -> Facts:
        remove_file(self._paths.retain / name, self._host.roots)
        return NO_FACTS

    def _retain(self) -> AbstractContextManager[Folder]:
        return open_folder(self._paths.retain, self._host.roots)
