"""The one door to libvirt: look, save, restore, freeze, stream, flush, write back, define. Nothing else is asked of it.

Every call raises HostFailure for what libvirt refuses and HypervisorAway where it does not answer.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import libvirt

from nodeagent.host.connection import Connection
from nodeagent.host.description import Description, describe, has_connected_agent, is_mirror_ready, snapshot_request
from nodeagent.host.errors import HostFailure, HypervisorAway
from nodeagent.host.flushing import flush
from nodeagent.host.pausing import short_pause
from vmkeep.contract.machine import Power

_STATE_MAGIC_COMPLETE = b"LibvirtQemudSave"
_JOB_POLL_SECONDS = 0.25  # an event tells the end of a job; this is for one that never came


@dataclass(frozen=True)
class View:
    """A machine as libvirt sees it now. `xml` is its live description, or the persistent one where it is off.

    `is_halted`: QEMU stopped it, because a disk took no more.
    """

    power: Power
    stopped_by_itself: bool
    moved_away: bool
    xml: str
    description: Description
    is_halted: bool = False

    @property
    def is_active(self) -> bool:
        """Whether QEMU runs for it."""
        return self.power is not Power.OFF


@dataclass(frozen=True)
class Job:
    """A block job, and the bytes it has done."""

    is_pull: bool
    is_commit: bool
    done: int


class Hypervisor:
    """libvirt on this node."""

    def __init__(self, uri: str, seconds: float = 60.0) -> None:
        """`seconds` bound connecting, and how long a call can hang at a daemon that answers nothing any more."""
        self._job_changed = threading.Condition()
        self._job_events = 0
        self._connection = Connection(uri, seconds, self._note_job_event)
        self._connected = self._connection.used

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def versions(self) -> dict[str, str]:
        """libvirt's and QEMU's versions, for the manifest."""
        with self._connected() as connection:
            return {"libvirt": _dotted(connection.getLibVersion()), "qemu": _dotted(connection.getVersion())}

    def look(self, name: str) -> View | None:
        """A machine as it is now; None where libvirt knows none of that name."""
        with self._connected() as connection:
            domain = _lookup(connection, name)
            if domain is None:
                return None
            state, reason = domain.state()
            flags = libvirt.VIR_DOMAIN_XML_SECURE
            xml = domain.XMLDesc(flags)
            # A panicked guest that is kept has its images open: it is not off.
            power = Power.PAUSED if state == libvirt.VIR_DOMAIN_CRASHED and domain.isActive() else _power(state)
        moved = (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
        halted = (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
        return View(power, _stopped_by_itself(state, reason), moved, xml, describe(xml), halted)

    def save(self, name: str, path: str) -> None:
        """Write a machine's memory to a file and stop it; it is off afterwards."""
        with self._connected() as connection:
            _known(connection, name).saveFlags(path, None, 0)

    def is_saving(self, name: str) -> bool:
        """Whether a save that somebody started is still being written."""
        with self._connected() as connection:
            domain = _lookup(connection, name)
            if domain is None or not domain.isActive():
                return False
            return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)

    def saved_description(self, path: str) -> str:
        """The XML inside a state file, with what is secret in it."""
        with self._connected() as connection:
            return str(connection.saveImageGetXMLDesc(path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))

    def description_to_keep(self, name: str) -> str:
        """The XML that a state file of the machine would have: nothing in it that only this run's QEMU filled in."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        with self._connected() as connection:
            return str(_known(connection, name).XMLDesc(flags))

    def restore(self, path: str, xml: str, power: Power) -> None:
        """Bring a machine back from its state file, with this XML, running or paused."""
        paused = power is Power.PAUSED
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else libvirt.VIR_DOMAIN_SAVE_RUNNING
        with self._connected() as connection:
            connection.restoreFlags(path, xml, flags)

    def definition(self, name: str) -> str:
        """The XML a machine would be started from next time; "" where libvirt knows none, or only one that runs."""
        with self._connected() as connection:
            domain = _lookup(connection, name)
            if domain is None or not domain.isPersistent():
                return ""
            return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE))

    def define(self, xml: str) -> None:
        """Make this the machine's definition, whether or not libvirt knows the machine already."""
        with self._connected() as connection:
            connection.defineXML(xml)

    def undefine(self, name: str) -> None:
        """Forget a machine that is off; its NVRAM and TPM files stay. Nothing where libvirt knows none."""
        flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
        with self._connected() as connection:
            domain = _lookup(connection, name)
            if domain is not None:
                domain.undefineFlags(flags)

    def has_managed_save(self, name: str) -> bool:
        """Whether libvirt holds a memory of the machine that its next start would go on from."""
        with self._connected() as connection:
            domain = _lookup(connection, name)
            return domain is not None and bool(domain.hasManagedSaveImage(0))

    def name_of_uuid(self, uuid: str) -> str:
        """The name of the machine with this UUID, "" where there is none."""
        with self._connected() as connection:
            try:
                return str(connection.lookupByUUIDString(uuid).name())
            except libvirt.libvirtError as why:
                if why.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return ""
                raise

    def disks_of_others(self, name: str) -> dict[str, str]:
        """Image path → machine, for every disk of every machine but this one."""
        with self._connected() as connection:
            others = [domain.XMLDesc(0) for domain in connection.listAllDomains(0) if domain.name() != name]
        found = [describe(xml) for xml in others]
        return {path: other.name for other in found for disk in other.disks for path in disk.chain}

    def start(self, name: str, *, paused: bool = False) -> None:
        """Start a machine that is off."""
        with self._connected() as connection:
            _known(connection, name).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def resume(self, name: str) -> None:
        """Let a paused machine go on."""
        with self._connected() as connection:
            _known(connection, name).resume()

    def destroy(self, name: str) -> None:
        """Stop a machine at once, as if its plug were pulled."""
        with self._connected() as connection:
            _known(connection, name).destroy()

    def freeze(self, name: str, overlays: Mapping[str, str], memory: str | None, *, quiesce: bool = False) -> None:
        """Turn every disk named into a frozen image below a new overlay, all in one instant; the machine runs on.

        `overlays` are target → path of a file to be made. `memory` is where its memory of the same instant goes, None
        for disks alone; then `quiesce` has the guest's filesystems frozen and thawed around it, or HostFailure.
        """
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE if memory else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if quiesce else 0
        with self._connected() as connection:
            domain = _known(connection, name)
            others = [disk.target for disk in describe(domain.XMLDesc(0)).disks if disk.target not in overlays]
            with short_pause(domain) if memory else nullcontext():
                domain.snapshotCreateXML(snapshot_request(overlays, others, memory), flags)

    @contextmanager
    def limited_agent(self, name: str, seconds: int) -> Iterator[bool]:
        """Give the agent inside the guest so long to answer, for what is done inside; False where none is connected.

        libvirt tells nobody what the limit was before; afterwards it is what every machine begins with: none.
        """
        with self._connected() as connection:
            domain = _known(connection, name)
            if is_there := has_connected_agent(domain.XMLDesc(0)):
                domain.agentSetResponseTimeout(seconds, 0)
        try:
            yield is_there
        finally:
            if is_there:
                with suppress(HostFailure, HypervisorAway), self._connected() as connection:
                    _known(connection, name).agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)

    def thaw(self, name: str) -> None:
        """Let the guest's filesystems go on; HostFailure where its agent does not answer."""
        with self._connected() as connection:
            _known(connection, name).fsThaw(None, 0)

    def commit(self, name: str, target: str, base: str, bandwidth: int) -> None:
        """Start to write a disk's overlay back into its frozen image. Bandwidth in MiB/s, 0 for unlimited."""
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        with self._connected() as connection:
            _known(connection, name).blockCommit(target, base, None, bandwidth, flags)

    def pivot(self, name: str, target: str) -> None:
        """Let the machine go on over the image that a commit has written to; HostFailure while it is not ready."""
        with self._connected() as connection:
            _known(connection, name).blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def pull(self, name: str, target: str, bandwidth: int) -> None:
        """Start to stream a disk's backing file into its image. Bandwidth in MiB/s, 0 for unlimited."""
        with self._connected() as connection:
            _known(connection, name).blockPull(target, bandwidth, 0)

    def flush(self, name: str, path: str) -> None:
        """Return when all that QEMU knows of an image it has open is on the disk; HostFailure where it refuses."""
        with self._connected() as connection:
            flush(_known(connection, name), path)

    def job(self, name: str, target: str) -> Job | None:
        """The block job at work on a disk."""
        with self._connected() as connection:
            info = _known(connection, name).blockJobInfo(target, 0)
        if not info:
            return None
        is_pull = info["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL
        return Job(is_pull, info["type"] == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, info["cur"])

    def wait_for_job(self, name: str, target: str, progress: Callable[[Job], None]) -> None:
        """Return when no job is at work on a disk any more, however it ended: the image says what became of it."""
        while True:
            events = self._job_events
            if (job := self.job(name, target)) is None:
                return
            progress(job)
            self._wait_for_job_event(events)

    def wait_until_ready(self, name: str, target: str, progress: Callable[[Job], None]) -> bool:
        """Return when a commit has written everything and may be pivoted; False where the job is gone."""
        while True:
            events = self._job_events
            if (job := self.job(name, target)) is None:
                return False
            progress(job)
            with self._connected() as connection:
                if is_mirror_ready(_known(connection, name).XMLDesc(0), target):
                    return True
            self._wait_for_job_event(events)

    def _wait_for_job_event(self, seen: int) -> None:
        """Return when there was an event since `seen` were counted, or it is time to look all the same."""
        with self._job_changed:
            self._job_changed.wait_for(lambda: self._job_events != seen, _JOB_POLL_SECONDS)

    def _note_job_event(self, *_event: object) -> None:
        with self._job_changed:
            self._job_events += 1
            self._job_changed.notify_all()


def is_complete_state(beginning: bytes) -> bool:
    """Whether the first bytes of a state file say that it was written to its end."""
    return beginning.startswith(_STATE_MAGIC_COMPLETE)


def _lookup(connection: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as why:
        if why.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _known(connection: libvirt.virConnect, name: str) -> libvirt.virDomain:
    domain = _lookup(connection, name)
    if domain is None:
        raise HostFailure(f"libvirt knows no machine {name} any more")
    return domain


def _power(state: int) -> Power:
    if state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_NOSTATE):
        return Power.OFF
    return Power.PAUSED if state == libvirt.VIR_DOMAIN_PAUSED else Power.RUNNING


def _stopped_by_itself(state: int, reason: int) -> bool:
    """Whether a person, the guest or a migration ended it here, rather than a save, a crash or a lost daemon."""
    wanted = (
        libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED,
        libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED,
    )
    return state == libvirt.VIR_DOMAIN_SHUTOFF and reason in wanted


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
