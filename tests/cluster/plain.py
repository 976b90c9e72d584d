"""What an admin with nothing but OpenLDAP's own tools does and sees; the tests' only way to the directory."""

import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab import services
from lab.cluster import Lab
from lab.waiting import until

LIMIT = 120.0
EDITS = Path(__file__).parents[2] / "ldif/edits"


def timestamp(offset: int = 0) -> str:
    """A leaf's name, now or some seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=offset)).strftime("%Y%m%dT%H%M%SZ")


@dataclass(frozen=True)
class Plain:
    """ldapadd, ldapmodify and ldapsearch as the cluster's admin."""

    lab: Lab

    def _tool(self, tool: str, *arguments: str, text: str = "") -> str:
        description = self.lab.description()["directory"]
        admin = description["identities"]["admin"]
        argv = [tool, "-x", "-H", description["uri"], "-D", admin["dn"], "-y", admin["password_file"], *arguments]
        done = subprocess.run(argv, input=text, text=True, capture_output=True, timeout=30, check=False)
        assert done.returncode in (0, 32), f"{argv}: {done.stderr}"
        return done.stdout

    def machine_dn(self, machine: str) -> str:
        return self.lab.tree.machine(machine)

    def leaf_dn(self, machine: str, leaf: str) -> str:
        return self.lab.tree.leaf(machine, leaf)

    def add(self, text: str) -> None:
        self._tool("ldapadd", text=text)

    def modify(self, dn: str, *changes: str) -> None:
        """Each change as 'replace attribute value' or 'delete attribute'."""
        body = ["dn: " + dn, "changetype: modify"]
        for change in changes:
            verb, attribute, *value = change.split(" ", 2)
            body += [f"{verb}: {attribute}", *(f"{attribute}: {one}" for one in value), "-"]
        self._tool("ldapmodify", text="\n".join(body) + "\n")

    def delete_tree(self, dn: str) -> None:
        self._tool("ldapdelete", "-r", dn)

    def read(self, dn: str) -> dict[str, list[str]]:
        """An entry's attributes; empty where there is none."""
        found: dict[str, list[str]] = {}
        for line in self._tool("ldapsearch", "-LLL", "-o", "ldif-wrap=no", "-s", "base", "-b", dn).splitlines():
            name, colon, value = line.partition(": ")
            if colon:
                found.setdefault(name, []).append(value)
        return found

    def add_backup_subtree(self, machine: str, **plan: str) -> None:
        """A machine's ou=backup, with a plan of its own."""
        lines = [f"dn: {self.lab.tree.machine_plan(machine)}", "objectClass: organizationalUnit"]
        lines += ["objectClass: sstVirtualizationBackupObjectClass", "ou: backup"]
        lines += [f"{name}: {value}" for name, value in plan.items()]
        self.add("\n".join(lines) + "\n")

    def free_timestamp(self, machine: str) -> str:
        """A name for a leaf made now; a machine that is off is backed up and restored within one second."""
        return until("a second without a leaf", lambda: None if self.leaf(machine, now := timestamp()) else now, 10)

    def add_leaf(self, machine: str, leaf: str, mode: str = "initialized") -> None:
        """A leaf as a plain tool makes it: none of vmkeep's own classes."""
        if not self.read(self.lab.tree.machine_plan(machine)):
            self.add_backup_subtree(machine)
        self.add(
            f"dn: {self.leaf_dn(machine, leaf)}\nobjectClass: top\nobjectClass: organizationalUnit\n"
            f"objectClass: sstProvisioning\nou: {leaf}\nsstProvisioningExecutionDate: 0\n"
            f"sstProvisioningMode: {mode}\nsstProvisioningState: 0\nsstProvisioningReturnValue: 0\n"
        )

    def ask(self, machine: str, leaf: str, mode: str) -> None:
        """Ask for a step: mode and State in one modify."""
        self.modify(
            self.leaf_dn(machine, leaf), f"replace sstProvisioningMode {mode}", "replace sstProvisioningState 0"
        )

    def leaf(self, machine: str, leaf: str) -> dict[str, list[str]]:
        return self.read(self.leaf_dn(machine, leaf))

    def wait(self, machine: str, leaf: str, mode: str, limit: float = LIMIT) -> dict[str, list[str]]:
        """The leaf as soon as it stands at a mode, or has failed."""

        def ended() -> dict[str, list[str]] | None:
            entry = self.leaf(machine, leaf)
            failed = entry.get("sstProvisioningReturnValue", ["0"]) != ["0"]
            return entry if failed or entry.get("sstProvisioningMode") == [mode] else None

        return until(f"{machine} {leaf} to become {mode}, or to fail", ended, limit, step=0.05)

    def step(self, machine: str, leaf: str, mode: str, done: str) -> dict[str, list[str]]:
        """Ask for a step and wait for its end; it has to end well."""
        self.ask(machine, leaf, mode)
        entry = self.wait(machine, leaf, done)
        assert entry["sstProvisioningMode"] == [done], entry
        assert entry["sstProvisioningReturnValue"] == ["0"], entry
        return entry

    def back_up(self, machine: str, leaf: str | None = None) -> str:
        """A whole backup without any controller."""
        leaf = leaf or self.free_timestamp(machine)
        self.add_leaf(machine, leaf)
        for mode, done in (("snapshot", "snapshotted"), ("merge", "merged"), ("retain", "retained")):
            self.step(machine, leaf, mode, done)
        self.finish(machine, leaf)
        return leaf

    def edit(self, name: str, machine: str, leaf: str) -> None:
        """One of the edits that are shipped, with this machine's names put in."""
        text = (EDITS / f"{name}.ldif").read_text()
        text = text.replace("dc=example,dc=org", self.lab.directory.suffix).replace("machine-01", machine)
        self._tool("ldapmodify", text=text.replace("20260101T030000Z", leaf).replace("20260101T120000Z", timestamp()))

    def edit_and_wait(self, name: str, machine: str, leaf: str, done: str) -> dict[str, list[str]]:
        """Apply an edit that asks for a step, and wait for its end; it has to end well."""
        self.edit(name, machine, leaf)
        entry = self.wait(machine, leaf, done)
        assert entry["sstProvisioningMode"] == [done], entry
        assert entry["sstProvisioningReturnValue"] == ["0"], entry
        return entry

    def restore(self, machine: str, leaf: str) -> dict[str, list[str]]:
        """A whole restore without any controller; the leaf when the machine is back."""
        self.edit_and_wait("restore-small-files", machine, leaf, "unretainedSmallFiles")
        self.edit_and_wait("restore-large-files", machine, leaf, "unretainedLargeFiles")
        restored = self.edit_and_wait("restore", machine, leaf, "restored")
        self.finish(machine, leaf)
        return restored

    def finish(self, machine: str, leaf: str) -> None:
        self.modify(
            self.leaf_dn(machine, leaf),
            "replace sstProvisioningMode finished",
            f"replace sstProvisioningState {timestamp()}",
        )

    def console(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The admin's command line, without a terminal."""
        argv = [services.script("vmkeep"), "--settings", self.lab.console_settings, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL)

    def fail(self, machine: str, leaf: str | None = None) -> tuple[int, str]:
        """Ask for a snapshot that has to fail; its return value and message."""
        leaf = leaf or self.free_timestamp(machine)
        self.add_leaf(machine, leaf)
        self.ask(machine, leaf, "snapshot")
        entry = self.wait(machine, leaf, "snapshotted")
        assert entry["sstProvisioningMode"] == ["snapshotting"], entry
        return int(entry["sstProvisioningReturnValue"][0]), entry.get("vmkeepMessage", [""])[0]


def files_below(folder: os.PathLike[str]) -> list[str]:
    """Every file below a folder, relative."""
    found = []
    for top, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(top, name), folder) for name in names]
    return sorted(found)
