"""Canaries: the passwords of every identity, looked for wherever they must not be, in a run that logs all it can."""

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import services
from lab.cluster import Lab, LabOptions
from lab.machines import MachineSpec
from tests.cluster.plain import Plain
from tests.conftest import ClusterFactory

PROGRAMS = (
    "vmkeep-nodeagent",
    "vmkeep-controller",
    "bin/vmkeep\0",
)  # others live too briefly to be sure of seeing them
WRONG = "canary-that-nobody-has-as-a-password"


@pytest.fixture(scope="module")
def talkative(cluster: ClusterFactory) -> Iterator[Lab]:
    """Agent, controller and console that log everything."""
    lab = cluster(LabOptions(machines=0))
    for path in (*map(lab.agent_settings, lab.nodes), lab.controller_settings, lab.console_settings):
        text = path.read_text()
        if path != lab.console_settings:
            text = text if "[logs]" in text else f"{text}\n[logs]\n"
            text = text.replace("[logs]", '[logs]\nlevel = "debug"')
        path.write_text(text)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def canaries(talkative: Lab) -> list[bytes]:
    found = [identity.password_file.read_bytes() for identity in talkative.directory.identities.values()]
    assert len(found) == 3
    assert all(len(canary) > 20 for canary in found)
    return [*found, WRONG.encode()]


class Processes:
    """Every command line and environment on this machine, seen again and again."""

    def __init__(self, canaries: list[bytes]) -> None:
        self.found: set[str] = set()
        self.seen: set[str] = set()
        self._canaries = canaries
        self._looks: Counter[str] = Counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def watched(self) -> Iterator["Processes"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._end.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.02):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                # Neither changes any more once a program has begun.
                if self._looks[pid] < 3:
                    self._looks[pid] += 1
                    self._look(Path("/proc") / pid)

    def _look(self, process: Path) -> None:
        for name in ("cmdline", "environ"):
            try:
                text = (process / name).read_bytes()
            except OSError:
                continue  # gone
            if name == "cmdline":
                self.seen |= {part for part in PROGRAMS if part.encode() in text}
            self.found |= {f"{process / name}: {text[:200]!r}" for canary in self._canaries if canary in text}


def call(lab: Lab, program: str, settings: Path, *arguments: str) -> str:
    argv = [services.script(program), "--settings", settings, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


def with_password(settings: Path, folder: Path, password: str) -> Path:
    """The same settings with another password file."""
    secret = folder / "wrong-password"
    secret.touch(0o600)
    secret.write_text(password)
    lines = [
        f'password_file = "{secret}"' if line.startswith("password_file") else line
        for line in settings.read_text().splitlines()
    ]
    changed = folder / settings.name
    changed.write_text("\n".join(lines))
    return changed


def test_no_password_is_anywhere_but_in_its_file(talkative: Lab, canaries: list[bytes], tmp_path: Path) -> None:
    lab, plain = talkative, Plain(talkative)
    told = []
    with Processes(canaries).watched() as processes:
        [node] = lab.nodes
        lab.start_agent(node)
        machine = lab.add_machine(MachineSpec(kind="bios"))
        controller, console = lab.controller_settings, lab.console_settings
        told.append(call(lab, "vmkeep-controller", controller, "run", machine.name))
        assert told[-1].startswith("0\n"), told
        [leaf] = [entry["ou"][0] for entry in lab.directory.search(lab.tree.machines, "(objectClass=sstProvisioning)")]
        lab.start_controller()
        plain.edit_and_wait("restore-small-files", machine.name, leaf, "unretainedSmallFiles")
        plain.edit("restore-large-files", machine.name, leaf)
        restored = plain.wait(machine.name, leaf, "finished")
        assert restored["sstProvisioningReturnValue"] == ["0"], restored
        told += [call(lab, "vmkeep", console, *asked.split()) for asked in ("status", f"plan {machine.name}")]
        for program, settings, asked in (
            ("vmkeep", console, "status"),
            ("vmkeep-controller", controller, "check"),
            ("vmkeep-controller", controller, f"run {machine.name}"),
            ("vmkeep-nodeagent", lab.agent_settings(node), "check"),
        ):
            wrong = with_password(settings, tmp_path, WRONG)
            told.append(call(lab, program, wrong, *asked.split()))
            assert not told[-1].startswith("0\n"), f"{program} {asked}: {told[-1]}"
        lab.stop_controller()
        lab.stop_agent(node)
    assert processes.seen == set(PROGRAMS), "else it shows nothing"
    assert processes.found == set()
    assert [text for text in told if any(canary.decode() in text for canary in canaries)] == []
    assert files_with(canaries, lab) == []
    assert entries_with(canaries, lab) == []


def files_with(canaries: list[bytes], lab: Lab) -> list[str]:
    """Every file of the lab that holds one: logs, journals, settings, sets, manifests, retain, RAM disk, libvirt's."""
    patterns = b"\n".join(canaries)
    argv = ["grep", "-rlaF", "-f", "-", "--exclude-dir=passwords", str(lab.folder)]
    done = subprocess.run(argv, input=patterns, capture_output=True, timeout=120, check=False)
    assert done.returncode in (0, 1, 2), done.stderr  # 2: a socket, or gone meanwhile
    logs = [path for path in lab.folder.rglob("*.log") if path.stat().st_size]
    assert {"nodeagent.log", "controller.log"} <= {path.name for path in logs}
    assert list(lab.folder.rglob("manifest.json.*")) != []
    return done.stdout.decode().splitlines()


def entries_with(canaries: list[bytes], lab: Lab) -> list[str]:
    """Every attribute of every entry, the operational ones too."""
    entries = lab.directory.search(lab.directory.suffix, "(objectClass=*)", "sub", "*", "+")
    assert len(entries) > 10
    return [
        f"{entry['dn'][0]}: {name}"
        for entry in entries
        for name, values in entry.items()
        for value in values
        if any(canary.decode() in value for canary in canaries)
    ]
