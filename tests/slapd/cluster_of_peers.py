"""A directory with machines, and scripted peers that answer in it as node agents do: for tests of the controller alone.

A peer binds as its node and claims, works for no time at all, and reports; it knows nothing of any hypervisor.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from lab.services import script
from lab.slapd import Identity, Slapd
from lab.waiting import until
from vmkeep.contract.errors import TryLater
from vmkeep.contract.grouping import to_instant
from vmkeep.contract.leaf import NOW, Leaf, with_duration
from vmkeep.contract.modes import Mode, at_work, done
from vmkeep.contract.names import Attribute, Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import LEAVES, Catalogue, Report
from vmkeep.directory.port import Claim, Store
from vmkeep.directory.settings import DirectorySettings

LIMIT = 20.0


@dataclass
class Script:
    """How a peer answers. `failures` are (mode asked, return value) a machine, each used once; `held` machines wait.

    A machine held in `snapshotting` does not run on yet where its leaf asks for an order of starting.

    `saved` is the LDIF a machine's entry is to become, said where large files are brought back. `digests` are machines
    of whose sets the digest is said.
    """

    failures: dict[str, list[tuple[Mode, int]]] = field(default_factory=dict)
    held: set[tuple[str, Mode]] = field(default_factory=set)
    saved: dict[str, str] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)


class Peer:
    """One node's scripted agent, in a thread."""

    def __init__(self, settings: DirectorySettings, node: str, play: Script) -> None:
        self._store = open_store(settings)
        self._catalogue = Catalogue(self._store, Tree(settings.suffix))
        self._node = node
        self._play = play
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"peer {node}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._ending = True
        self._wake.set()
        self._thread.join(LIMIT)
        self._store.close()

    def wake(self) -> None:
        """Look again, after the script changed."""
        self._wake.set()

    def _run(self) -> None:
        with self._store.watch(self._catalogue.tree.machines, LEAVES, self._wake.set):
            while not self._ending:
                try:
                    self._cycle()
                except TryLater:
                    self._wake.wait(0.2)
                    self._wake.clear()
                    continue
                self._wake.wait(5)
                self._wake.clear()

    def _cycle(self) -> None:
        for leaf in list(self._catalogue.leaves()):
            if leaf.is_asked(datetime.now(UTC).date()) and leaf.mode:
                self._answer(leaf, leaf.mode)

    def _answer(self, leaf: Leaf, mode: Mode) -> None:
        if (leaf.machine, mode) in self._play.held:
            return
        working = at_work(mode)
        if self._catalogue.claim(leaf, working, Report(NOW)) is Claim.LOST:
            return
        claimed = self._catalogue.leaf(leaf.dn)
        assert claimed is not None
        failures = self._play.failures.get(leaf.machine, [])
        failure = next((one for one in failures if one[0] is mode), None)
        if failure:
            failures.remove(failure)
            self._catalogue.claim(claimed, working, Report(_now(), failure[1], f"scripted failure of {mode}"))
            return
        if mode is Mode.SNAPSHOT and claimed.start_wait is not None:
            self._run_on(claimed)
        durations = with_duration(claimed.execution_times, mode, 1.5)
        if mode is Mode.SNAPSHOT:
            durations = with_duration(durations, "downtime", 0.25)
        extra: dict[str, Sequence[str]] = {Attribute.EXECUTION_TIME: durations}
        if mode is Mode.SNAPSHOT:
            extra[Attribute.INSTANT] = (to_instant(datetime.now(UTC)),)
        if mode is Mode.RETAIN and leaf.machine in self._play.digests:
            extra[Attribute.MANIFEST_DIGEST] = ("blake3:0",)
        if mode is Mode.UNRETAIN_SMALL_FILES:
            extra[Attribute.CONFLICTS] = ("[]",)
        if mode is Mode.UNRETAIN_LARGE_FILES and leaf.machine in self._play.saved:
            extra[Attribute.ENTRY] = (self._play.saved[leaf.machine],)
        self._catalogue.claim(claimed, done(working), Report(_now(), extra=extra))

    def _run_on(self, leaf: Leaf) -> None:
        """Once the leaf lets the machine; which is held by the script before, where it is to be late."""

        def is_let() -> bool:
            found = self._catalogue.leaf(leaf.dn)
            return (
                found is not None and not found.start_wait and (leaf.machine, Mode.SNAPSHOTTING) not in self._play.held
            )

        until(f"{leaf.machine} to be let run on", lambda: is_let() or None, LIMIT, 0.02)
        self._catalogue.note(leaf, {Attribute.STARTED.value: (to_instant(datetime.now(UTC)),)})


def _now() -> str:
    return to_timestamp(datetime.now(UTC))


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str


class ClusterOfPeers:
    """Machines in a slapd, their peers, and the controller's commands."""

    def __init__(self, slapd: Slapd, folder: Path) -> None:
        self.slapd = slapd
        self.folder = folder
        self.tree = Tree(slapd.suffix)
        self._started: list[subprocess.Popen[str]] = []

    # the directory

    def add_node(self, node: str) -> Identity:
        """A node with a password."""
        self.slapd.add(f"dn: {self.tree.node(node)}\nobjectClass: sstVirtualizationNode\nsstNode: {node}\n")
        return self.slapd.give_password(node, self.tree.node(node))

    def add_machines(self, names: Sequence[str], node: str = "n1", with_backup: bool = True) -> None:
        """Machines on a node."""
        self.slapd.add("\n".join(self.machine_ldif(name, node, with_backup) for name in names))

    def machine_ldif(self, name: str, node: str, with_backup: bool) -> str:
        dn = self.tree.machine(name)
        lines = [f"dn: {dn}", "objectClass: sstVirtualizationVirtualMachine", f"sstVirtualMachine: {name}"]
        lines += ["sstDisplayName: x", "sstVirtualMachinePool: p", "sstType: kvm", "sstStatus: running"]
        lines += ["sstMemory: 1048576", "sstVCPU: 1", *([f"sstNode: {node}"] if node else []), ""]
        if with_backup:
            lines += [f"dn: ou=backup,{dn}", "objectClass: organizationalUnit"]
            lines += ["objectClass: sstVirtualizationBackupObjectClass", "ou: backup", ""]
        return "\n".join(lines)

    def set(self, dn: str, **values: str) -> None:
        """Replace attributes, as an admin does."""
        changes = "-\n".join(f"replace: {name}\n{name}: {value}\n" for name, value in values.items())
        self.slapd.modify(f"dn: {dn}\nchangetype: modify\n{changes}")

    def add_leaf(self, machine: str, timestamp: str, mode: str, state: str, **more: str) -> str:
        """A leaf as any LDAP client may make it."""
        dn = self.tree.leaf(machine, timestamp)
        lines = [f"dn: {dn}", "objectClass: organizationalUnit", "objectClass: sstProvisioning"]
        lines += ["objectClass: vmkeepLeaf", f"ou: {timestamp}", "sstProvisioningExecutionDate: 0"]
        lines += [f"sstProvisioningMode: {mode}", f"sstProvisioningState: {state}"]
        lines += [f"{name}: {value}" for name, value in more.items()]
        self.slapd.add("\n".join([*lines, ""]))
        return dn

    def take_lease_away(self) -> None:
        """From whoever has it, dead or alive: the next controller acts at once."""
        self.slapd.modify(f"dn: {self.tree.lease}\nchangetype: modify\nreplace: vmkeepLeaseHolder\n")

    def leaves(self, machine: str) -> list[dict[str, list[str]]]:
        """A machine's leaves, oldest first."""
        found = self.slapd.search(self.tree.machine(machine), "(objectClass=sstProvisioning)")
        return sorted(found, key=lambda leaf: leaf["ou"])

    def modes(self, machine: str) -> list[str]:
        """The modes of a machine's leaves."""
        return [leaf["sstProvisioningMode"][0] for leaf in self.leaves(machine)]

    def context_csn(self) -> list[str]:
        """The directory's change number."""
        [entry] = self.slapd.search(self.slapd.suffix, "(objectClass=*)", "base", "contextCSN")
        return entry.get("contextCSN", [])

    # programs

    def settings_of(self, identity: Identity) -> DirectorySettings:
        """How an identity reaches the directory."""
        return DirectorySettings(
            uri=self.slapd.uri,
            suffix=self.slapd.suffix,
            bind_dn=identity.dn,
            password_file=identity.password_file,
            timeout_seconds=5,
        )

    def store(self, identity: Identity) -> Store:
        """A store, to be closed by the caller."""
        return open_store(self.settings_of(identity))

    def peer(self, play: Script | None = None, node: str = "n1") -> Peer:
        """A scripted agent; a context manager."""
        return Peer(self.settings_of(self.slapd.identities[node]), node, play or Script())

    def controller_file(self, **values: object) -> Path:
        """Settings of a controller; nobody waits long for a dead one."""
        return self.settings_file("controller", **{"lease_seconds": 2, **values})

    def settings_file(self, name: str, **values: object) -> Path:
        """A settings file for a program, with further keys at its top."""
        identity = self.slapd.identities[name]
        path = self.folder / f"{name}-{len(list(self.folder.iterdir()))}.toml"
        top = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        path.write_text(
            f'{top}[directory]\nuri = "{self.slapd.uri}"\nsuffix = "{self.slapd.suffix}"\n'
            f'bind_dn = "{identity.dn}"\npassword_file = "{identity.password_file}"\ntimeout_seconds = 5\n'
        )
        return path

    def start(self, *arguments: str, program: str = "vmkeep-controller") -> "subprocess.Popen[str]":
        """Start a command."""
        process = subprocess.Popen(
            [script(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, program: str = "vmkeep-controller", limit: float = LIMIT) -> Ended:
        """Run a command to its end."""
        return self.ended(self.start(*arguments, program=program), limit)

    def ended(self, process: "subprocess.Popen[str]", limit: float = LIMIT) -> Ended:
        """Wait for a command."""
        out, err = process.communicate(timeout=limit)
        return Ended(process.returncode, out, err)

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=LIMIT)

    def empty(self) -> None:
        """End whatever still runs, and remove every machine; nobody has the lease."""
        self.close()
        for machine in self.slapd.search(self.tree.machines, "(objectClass=*)", "one", "ou"):
            self.slapd.delete(machine["dn"][0])
        self.take_lease_away()

    # watching

    def wait_for(self, what: str, check: Callable[[], object], limit: float = LIMIT) -> None:
        """Poll until something is so."""
        until(what, lambda: bool(check()) or None, limit, 0.03)

    def transcript(self, machine: str) -> list[str]:
        """How a machine's leaves came to be, as the server wrote it down: writer, mode, State, ReturnValue."""
        lines: list[str] = []
        known: dict[str, dict[str, str]] = {}
        for write in self.slapd.history(self.tree.machine(machine)):
            if write["reqDN"][0].casefold().startswith("sstvirtualmachine=") and write["reqType"] == ["add"]:
                lines, known = [], {}  # a machine of an earlier test had this name
            values = known.setdefault(write["reqDN"][0].casefold(), {})
            if write["reqType"] == ["add"]:
                values.clear()
            mode = values.get(Attribute.MODE)
            for modification in write.get("reqMod", []):
                name, _, rest = modification.partition(":")
                if rest[:1] in ("+", "=") and rest[2:]:
                    values[name] = rest[2:]
            if values.get(Attribute.MODE) != mode:
                lines.append(f"{_writer(write)} {_told(values)}")
        return lines


def _writer(write: Mapping[str, Sequence[str]]) -> str:
    name = write["reqAuthzID"][0].partition(",")[0]
    return {"cn=controller": "controller", "sstNode=n1": "agent"}.get(name, name)


def _told(values: Mapping[str, str]) -> str:
    told = (values.get(name, "-") for name in (Attribute.MODE, Attribute.STATE, Attribute.RETURN_VALUE))
    return " ".join("now" if re.fullmatch(r"\d{8}T\d{6}Z", value) else value for value in told)


def wait_a_second() -> None:
    """Leaves are named by the second: the next run needs another one."""
    end = int(time.time()) + 1
    until("the next second", lambda: time.time() >= end or None, 2.0, 0.01)
