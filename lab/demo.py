"""`make demo`: backs up two running machines on two nodes before your eyes, and proves what it promises.

A private cluster, its agents, one `vmkeep-controller run --all`; then the proofs: how long the guests stood still, that
no count is missing, that no byte of their pattern changed, where the sets lie. At the end everything is removed.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Event

from blake3 import blake3
from rich.console import Console
from rich.live import Live
from rich.table import Table

from lab import services
from lab.cluster import Lab, LabOptions
from lab.machines import Machine, MachineSpec
from lab.slapd import SlapdOptions
from lab.ticks import Follower, SerialLog, read_serial
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.manifest import Manifest, SetFile
from vmkeep.contract.names import Attribute
from vmkeep.contract.paths import MANIFEST_NAME
from vmkeep.directory import open_store
from vmkeep.directory.catalogue import LEAVES, Catalogue
from vmkeep.directory.settings import DirectorySettings

_RUN_SECONDS = 90
_BEFORE, _AFTER = 100, 300  # counts to see before and after the backup; 300 read a third of the pattern back
_STEPS = ["initialize", "initialized", "snapshot", "snapshotting", "snapshotted", "merge", "merging", "merged"]
_STEPS += ["retain", "retaining", "retained", "finished"]


@dataclass
class Story:
    """What became of one machine's leaf while we watched: (seconds, mode) pairs, and the leaf as last read."""

    machine: Machine
    moments: list[tuple[float, str]] = field(default_factory=list)
    leaf: Leaf | None = None

    def see(self, leaf: Leaf, since: float) -> bool:
        """Take a fresh read; whether the mode changed."""
        changed = self.leaf is None or self.leaf.raw_mode != leaf.raw_mode
        self.leaf = leaf
        if changed:
            self.moments.append((since, leaf.raw_mode))
        return changed


def run() -> int:
    """Run the demo; 0 when everything was as promised, 1 when not."""
    console = Console(highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="vmkeep-demo-"))
    try:
        return _show(console, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        console.print("everything ended and removed" if not folder.exists() else f"[red]{folder} is left behind")


def _show(console: Console, folder: Path) -> int:
    began = time.monotonic()
    console.print("starting a cluster: OpenLDAP, two nodes with libvirt, a Linux machine and an agent on each …")
    with Lab(
        folder / "lab",
        LabOptions(nodes=2, machines=2, machine=MachineSpec(period_ms=10), agents=True, slapd=SlapdOptions(audit=True)),
    ) as lab:
        console.print(f"up after {time.monotonic() - began:.1f} s; the guests count every 10 ms")
        stories = {name: Story(machine) for name, machine in lab.machines.items()}
        with _followed(lab) as followers:
            _count_on(lab, _BEFORE)
            failures = _back_up(console, lab, stories)
            _count_on(lab, _AFTER)
        _print_machines(console, stories, followers)
        failures += [failure for story in stories.values() for failure in _broken_promises(lab, story)]
        _print_sets(console, stories)
    for failure in failures:
        console.print(f"[red]not as promised:[/red] {failure}", soft_wrap=True)
    console.print(f"{'failed' if failures else 'all as promised'}, {time.monotonic() - began:.0f} s in all")
    return 1 if failures else 0


@contextmanager
def _followed(lab: Lab) -> Iterator[dict[str, Follower]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(Follower(machine.serial)) for name, machine in lab.machines.items()}


def _count_on(lab: Lab, counts: int) -> None:
    for name in lab.machines:
        lab.wait_for_count(name, more=counts)


def _back_up(console: Console, lab: Lab, stories: dict[str, Story]) -> list[str]:
    """Run the controller as cron would, and show each mode as it is written."""
    said = lab.folder / "log/run.log"
    command: list[str | Path] = [
        services.script("vmkeep-controller"),
        "--settings",
        lab.controller_settings,
        "run",
        "--all",
    ]
    console.print(f"\n$ vmkeep-controller --settings {lab.controller_settings} run --all", soft_wrap=True)
    with said.open("wb") as out:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            _watch(console, lab, stories, running)
        finally:
            if running.poll() is None:
                running.kill()
            code = running.wait(timeout=10)
    console.print()
    console.print(said.read_text(errors="replace").rstrip(), soft_wrap=True, markup=False)
    return [] if code == 0 else [f"vmkeep-controller run ended with {code} instead of 0"]


def _watch(console: Console, lab: Lab, stories: dict[str, Story], running: "subprocess.Popen[bytes]") -> None:
    began, woken = time.monotonic(), Event()
    store = open_store(_admin(lab))
    catalogue = Catalogue(store, lab.tree)
    with (
        Live(_modes(stories), console=console, auto_refresh=False) as live,
        store.watch(lab.tree.machines, LEAVES, woken.set),
    ):
        while running.poll() is None and time.monotonic() - began < _RUN_SECONDS:
            woken.wait(0.1)
            woken.clear()
            _look(catalogue, stories, time.monotonic() - began)
            live.update(_modes(stories), refresh=console.is_terminal)
        _look(catalogue, stories, time.monotonic() - began)
        live.update(_modes(stories), refresh=True)
    store.close()


def _admin(lab: Lab) -> DirectorySettings:
    identity = lab.directory.identities["admin"]
    return DirectorySettings(
        uri=lab.directory.uri,
        suffix=lab.directory.suffix,
        bind_dn=identity.dn,
        password_file=identity.password_file,
    )


def _look(catalogue: Catalogue, stories: dict[str, Story], since: float) -> None:
    for leaf in catalogue.leaves():
        stories[leaf.machine].see(leaf, since)


def _modes(stories: dict[str, Story]) -> Table:
    table = Table("machine", "node", "mode", "the leaf so far (seconds)", expand=True)
    for name, story in stories.items():
        so_far = " → ".join(f"{mode} {since:.1f}" for since, mode in story.moments)
        mode = story.leaf.raw_mode if story.leaf else "–"
        color = {"finished": "green", "–": "dim"}.get(mode, "yellow")
        table.add_row(name, story.machine.node.name.partition(".")[0], f"[{color}]{mode}", so_far)
    return table


def _print_machines(console: Console, stories: dict[str, Story], followers: dict[str, Follower]) -> None:
    table = Table("machine", "downtime", "longest silence", "counts", "missing", "pattern checks", expand=True)
    table.title = "What the guests noticed"
    for name, story in stories.items():
        log = read_serial(story.machine.serial)
        downtime = story.leaf.duration("downtime") if story.leaf else None
        table.add_row(
            name,
            "–" if downtime is None else f"{downtime:.3f} s",
            f"{followers[name].widest_gap():.3f} s {_around(followers[name])}",
            f"{log.counts[0].seq} … {log.last}" if log.counts else "none",
            str(len(log.missing)),
            f"{sum(log.checks)} of {len(log.checks)} as written",
        )
    console.print(table)


def _around(follower: Follower) -> str:
    """Between which counts the longest silence was."""
    pairs = list(pairwise(follower.arrivals))
    if not pairs:
        return ""
    (before, _), (after, _) = max(pairs, key=lambda pair: pair[1][1] - pair[0][1])
    return f"({before} → {after})"


def _print_sets(console: Console, stories: dict[str, Story]) -> None:
    for name, story in stories.items():
        folder = _set_folder(story)
        console.print(f"\n[bold]{name}[/bold]: {folder}", soft_wrap=True)
        for path in sorted(folder.iterdir()) if folder and folder.is_dir() else []:
            console.print(f"  {path.stat().st_size:>12,}  {path.name}", soft_wrap=True)
    console.print()


def _set_folder(story: Story) -> Path | None:
    if story.leaf is None:
        return None
    machine = story.machine
    return machine.node.backup / machine.spec.storage / machine.node.storage_pool / machine.name / story.leaf.timestamp


def _broken_promises(lab: Lab, story: Story) -> list[str]:
    """Every promise that was not kept for one machine."""
    name, leaf = story.machine.name, story.leaf
    if leaf is None:
        return [f"{name}: no leaf was written"]
    log = read_serial(story.machine.serial)
    steps = _written_modes(lab, leaf)
    damaged = _damaged_files(_set_folder(story))
    left = [path for place in (story.machine.node.retain, story.machine.node.ram) for path in _files_below(place)]
    promises = {
        f"the leaf is {leaf.raw_mode} with return value {leaf.return_value}: {leaf.message}": leaf.is_good_backup,
        f"the modes were {', '.join(steps)}": steps == _STEPS,
        "no downtime was recorded": leaf.duration("downtime") is not None,
        f"the set in {_set_folder(story)} is not whole: {', '.join(damaged)}": not damaged,
        f"files are left: {', '.join(map(str, left))}": not left,
        **_guest_promises(log),
    }
    return [f"{name}: {sentence}" for sentence, kept in promises.items() if not kept]


def _guest_promises(log: SerialLog) -> dict[str, bool]:
    return {
        f"counts do not follow each other: {log.missing}": not log.missing,
        f"the guest found its disk changed: {'; '.join(log.complaints)}": not log.complaints,
        f"the guest stopped counting at {log.last}": log.last >= _BEFORE + _AFTER,
        "the guest never read its pattern back": len(log.checks) > 1,
    }


def _written_modes(lab: Lab, leaf: Leaf) -> list[str]:
    """The modes the leaf went through, from the server's own history; progress is written beside a mode that stays."""
    modes: list[str] = []
    for entry in lab.directory.history(leaf.dn):
        for change in entry.get("reqMod", []):
            attribute, _, value = change.partition(" ")
            if attribute in (f"{Attribute.MODE}:+", f"{Attribute.MODE}:="):
                modes += [value] if modes[-1:] != [value] else []
    return modes


def _damaged_files(folder: Path | None) -> list[str]:
    """Files of a set that are not what its manifest says; the manifest itself where there is none that can be read."""
    found = sorted(folder.glob(f"{MANIFEST_NAME}*")) if folder else []
    if len(found) != 1:
        return [f"{len(found)} manifests"]
    manifest = Manifest.model_validate_json(found[0].read_text())
    suffix = found[0].name.removeprefix(MANIFEST_NAME)
    return [file.name for file in manifest.files if not _is_as_promised(found[0].parent, file, suffix)]


def _is_as_promised(folder: Path, file: SetFile, suffix: str) -> bool:
    path = folder / (file.name if file.name.endswith(suffix) else file.name + suffix)
    if not path.exists() or path.stat().st_size != file.size:
        return False
    return file.digest == f"blake3:{blake3(path.read_bytes()).hexdigest()}"


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]
