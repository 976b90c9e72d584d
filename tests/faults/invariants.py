"""What must be true after any fault and the recovery from it (I1 to I10), looked at from outside.

Knows guest, libvirt, directory and file system, and nothing of vmkeep's own code. A picture is taken before; what is
told afterwards are violations, in words.
"""

import functools
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
from blake3 import blake3

from lab import ticks
from lab.cluster import Lab
from lab.errors import LabError
from lab.machines import Machine
from lab.waiting import until
from tests.cluster import sets
from tests.cluster.counting import chains
from tests.cluster.plain import files_below
from tests.faults.seen_processes import emulators, secrets_seen
from tests.faults.violation import Violation
from tests.faults.writes import Write, is_at_work, writes_of

RUNNING, PAUSED, OFF = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF
# Where a set's own files may lie in retain, and the live image may stand on one of them.
_NOT_YET_MERGED = ("snapshot", "snapshotting", "snapshotted", "merge", "merging")
_MAKES_A_SET = (*_NOT_YET_MERGED, "merged", "retain", "retaining")
_USES_RETAIN = (
    *(*_MAKES_A_SET, "retained"),
    *("unretainingSmallFiles", "unretainedSmallFiles", "unretainLargeFiles", "unretainingLargeFiles"),
    *("unretainedLargeFiles", "restore", "restoring", "restored"),
)
_EVENT = re.compile(rb"T (\d+) \d|B (\d+)\r?\n")
_SET_NAME = re.compile(r"\d{8}T\d{6}Z")
Files = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Picture:
    """A machine at rest. `definition` is its persistent one; `good` are its whole sets: file → size and digest."""

    name: str
    state: int
    uuid: str
    definition: str
    inodes: tuple[int, ...]
    offset: int
    count: int
    good: dict[str, Files]


@dataclass(frozen=True)
class Story:
    """What a test itself has done to a machine since its picture; nothing else may have happened.

    `restored` is the set it was restored from, well or not; `lost_power`: its QEMU was ended; `states` are the power
    states it may be in instead of the one before; `deleted` are sets whose deletion was asked for; `untouched`: images
    and definition are to be those of before; `hurt`: the test damaged its sets or images itself, named by invariant.
    """

    restored: str = ""
    lost_power: bool = False
    states: tuple[int, ...] = ()
    deleted: tuple[str, ...] = ()
    untouched: bool = False
    hurt: frozenset[str] = frozenset()


@dataclass
class World:
    """The machines of a lab, their pictures, and what the directory's own history says since they were taken."""

    lab: Lab
    pictures: dict[str, Picture] = field(default_factory=dict)
    since: str = ""

    def look(self, *machines: Machine) -> None:
        """Take the pictures of these machines anew."""
        self.since = time.strftime("%Y%m%d%H%M%S.000000Z", time.gmtime())
        for machine in machines:
            self.pictures[machine.name] = picture(machine)

    def violations(self, stories: dict[str, Story]) -> list[Violation]:
        """All of them, of every machine that has a story."""
        history = writes_of(self.lab, self.since)
        found: list[Violation] = []
        for name, story in stories.items():
            machine = self.lab.machines[name]
            found += _Check(self.lab, machine, self.pictures[name], story, history).all()
        return found + secrets_seen(self.lab)


def picture(machine: Machine) -> Picture:
    """How a machine is now."""
    domain = machine.node.domain(machine.name)
    return Picture(
        machine.name,
        domain.state()[0],
        domain.UUIDString(),
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
        tuple(disk.stat().st_ino for disk in machine.disks),
        *_told_so_far(machine.serial),
        good_sets(machine),
    )


def _told_so_far(serial: Path) -> tuple[int, int]:
    """The length of the whole lines of a serial log, and the newest count in them: no line may be cut in two."""
    lines = serial.read_bytes() if serial.exists() else b""
    whole = lines[: lines.rfind(b"\n") + 1]
    counts = [int(found[1]) for found in _EVENT.finditer(whole[-8192:]) if found[1] is not None]
    return len(whole), (counts or [0])[-1]


def good_sets(machine: Machine) -> dict[str, Files]:
    """Every set in the backup directory whose files are those of its manifest."""
    found = {folder.name: files_of(folder) for folder in _set_folders(machine)}
    return {name: files for name, files in found.items() if not _wrong_in(_folder(machine, name), files)}


def files_of(folder: Path) -> Files:
    """Each file's size and digest, as the manifest writes it; without the manifest."""
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("manifest.json."):
            status = path.stat()
            files[path.name] = (status.st_size, _digest(path, status.st_ino, status.st_size, status.st_mtime_ns))
    return files


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _inode: int, _size: int, _written: int) -> str:
    """Read once for as long as nobody writes to it."""
    with path.open("rb") as file:
        return "blake3:" + blake3(file.read()).hexdigest()


def _set_folders(machine: Machine) -> list[Path]:
    above = _folder(machine, "x").parent
    return [path for path in sorted(above.iterdir()) if _SET_NAME.fullmatch(path.name)] if above.is_dir() else []


def _folder(machine: Machine, timestamp: str) -> Path:
    """Where a set lies; behind a filesystem that fails, and is slow, what it shows."""
    shown, folder = machine.node.backup, sets.directory_of(machine, timestamp)
    behind = shown.with_name("source")
    return behind / folder.relative_to(shown) if shown.name == "shown" and behind.is_dir() else folder


def _wrong_in(folder: Path, files: Files) -> str:
    """What is wrong with a set that can be seen, "" where it is whole."""
    try:
        told = {each["name"]: (each["size"], each["digest"]) for each in sets.manifest(folder)["files"]}
    except (OSError, ValueError, KeyError) as why:
        return f"{folder} can be seen and has no manifest that can be read: {why}"
    return "" if told == files else f"{folder} is not what its manifest says: {told} is {files}"


@dataclass(frozen=True)
class _Check:
    lab: Lab
    machine: Machine
    before: Picture
    story: Story
    history: list[Write]

    def all(self) -> list[Violation]:
        checks: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
            ("I1", self._power),
            ("I2", self._data),
            ("I2", self._chains),
            ("I3", self._leaves),
            ("I4", self._orphans),
            ("I5", self._kept_sets),
            ("I6", self._visible_sets),
            ("I7", self._actors),
            ("I8", self._untouched),
        )
        return [
            Violation(self.machine.name, name, seen)
            for name, check in checks
            if name not in self.story.hurt
            for seen in check()
        ]

    @functools.cached_property
    def _domain(self) -> libvirt.virDomain:
        return self.machine.node.domain(self.machine.name)

    @functools.cached_property
    def _leaf_entries(self) -> list[dict[str, list[str]]]:
        return self.lab.directory.search(self.lab.tree.machine(self.machine.name), "(objectClass=sstProvisioning)")

    def _modes(self) -> dict[str, str]:
        return {entry["ou"][0]: entry["sstProvisioningMode"][0] for entry in self._leaf_entries}

    def _power(self) -> Iterator[str]:
        state, allowed = self._domain.state()[0], self.story.states or (self.before.state,)
        if state not in allowed:
            yield f"its power state is {state}, before it was {self.before.state}"
        if self._domain.UUIDString() != self.before.uuid:
            yield f"its UUID is {self._domain.UUIDString()}, before it was {self.before.uuid}"
        if len(running := emulators(self.before.uuid)) > 1:
            yield f"more than one QEMU runs it: {running}"

    def _data(self) -> Iterator[str]:
        if self._domain.state()[0] == RUNNING and self.machine.spec.kind == "linux":
            yield from self._does_not_count()
        text = self.machine.serial.read_bytes()[self.before.offset :]
        if b" BAD" in text:
            yield f"the guest read what it had not written: {text[max(0, text.find(b' BAD') - 40) :][:80]!r}"
        yield from self._lost_counts(text)
        if self._domain.state()[0] == OFF and self.machine.spec.kind == "linux" and not self.story.restored:
            newest = min(ticks.newest_on_disk(Path(chain[0])) for chain in chains(self._domain.XMLDesc()))
            printed = ticks.last_count(self.machine.serial)
            if newest < printed:
                yield f"it printed {printed} and a disk of it ends at {newest}"

    def _does_not_count(self) -> Iterator[str]:
        """A restored guest prints less than it did before, as soon as it prints at all."""
        seen: set[int] = set()

        def has_counted() -> bool:
            seen.add(ticks.last_count(self.machine.serial))
            return len(seen) > 3

        try:
            until("three counts", has_counted, 60)
        except LabError:
            yield f"it does not count: {told(self.machine)}"

    def _lost_counts(self, text: bytes) -> Iterator[str]:
        """The guest counts on: across a loss of power it may miss none, across a restore it goes back to the set."""
        last, booted, ahead = self.before.count, False, 0
        back_to = self._instant() if self.story.restored else -1
        for found in _EVENT.finditer(text):
            if found[2] is not None:
                booted = True
                continue
            number = int(found[1])
            follows = number == last + 1 or (booted and self.story.lost_power and number == last + 2)
            goes_back = back_to >= 0 and number in (back_to, back_to + 1, *((back_to + 2,) if booted else ()))
            was_put_back = ahead and number == ahead + 1
            if not follows and not (last and (goes_back or was_put_back)) and last:
                yield f"it counted {number} after {last}" + (" as it booted" if booted else "")
            ahead = last if goes_back and not follows else ahead
            last, booted = number, False

    def _instant(self) -> int:
        """The newest record on the disks of the set it was restored from."""
        folder = _folder(self.machine, self.story.restored)
        images = [folder / each["name"] for each in sets.manifest(folder)["files"] if each["role"] == "disk"]
        return max(ticks.newest_on_disk(image) for image in images)

    def _chains(self) -> Iterator[str]:
        views = (self._domain.XMLDesc(), self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        files = {path for view in views for chain in chains(view) for path in chain}
        yield from (f"its chain names {path}, which is not there" for path in sorted(files) if not Path(path).exists())
        if any(mode in _NOT_YET_MERGED for mode in self._modes().values()):
            return
        own = [[str(path)] for path in self.machine.disks]
        yield from (f"its chain is {chains(view)}" for view in views if chains(view) != own)
        for disk in self.machine.disks:
            if not disk.exists():
                yield f"its image {disk} is gone"
            elif "backing-filename" in (info := sets.image_info(disk)):
                yield f"its image {disk} stands on {info['backing-filename']}"

    def _leaves(self) -> Iterator[str]:
        for entry in self._leaf_entries:
            mode, state = entry["sstProvisioningMode"][0], entry["sstProvisioningState"][0]
            code = entry.get("sstProvisioningReturnValue", ["0"])[0]
            if is_at_work(mode) and state == "0" and code == "0":
                yield f"its leaf {entry['ou'][0]} stands at {mode} and nobody is at work"
            if code != "0" and not entry.get("vmkeepMessage", [""])[0].strip():
                yield f"its leaf {entry['ou'][0]} failed with {code} and says no sentence"
        for leaf, writes in self._writes_by_leaf():
            ends = 0
            for write in writes:
                ends = 0 if write.is_claim else ends + write.is_end
                if ends > 1:
                    yield f"its leaf {leaf} was ended twice in one attempt: {[str(each) for each in writes]}"

    def _writes_by_leaf(self) -> Iterator[tuple[str, list[Write]]]:
        below = self.lab.tree.machine(self.machine.name).casefold()
        own = sorted((write for write in self.history if write.dn.casefold().endswith(below)), key=lambda each: each.dn)
        for dn, writes in itertools.groupby(own, key=lambda each: each.dn):
            yield dn.partition(",")[0], sorted(writes, key=lambda each: each.at)

    def _orphans(self) -> Iterator[str]:
        node, name, modes = self.machine.node, self.machine.name, self._modes()
        yield from (f"{path} lies on the RAM disk" for path in files_below(node.ram) if name in path)
        for path in files_below(node.retain):
            stamp = _SET_NAME.search(path)
            if f"/{name}/" in f"/{path}" and not (stamp and modes.get(stamp[0], "") in _USES_RETAIN):
                yield f"{path} lies in retain, and no leaf says why"
        for root in (node.backup, node.retain, self.machine.disks[0].parent):
            for path in files_below(root):
                stamp = _SET_NAME.search(path)
                is_made = stamp and modes.get(stamp[0], "") in _MAKES_A_SET
                if ".partial" in path and name in path and not is_made:
                    yield f"{path} was left"
        for path in self.machine.disks[0].parent.iterdir():
            stamp = _SET_NAME.search(path.name)
            if name in path.name and stamp and modes.get(stamp[0], "") not in _NOT_YET_MERGED:
                yield f"{path} lies beside its image"
        if self._domain.isActive():
            jobs = {target: self._domain.blockJobInfo(target) for target in self.machine.targets}
            yield from (f"a block job is left on {target}: {job}" for target, job in jobs.items() if job)

    def _kept_sets(self) -> Iterator[str]:
        for stamp, files in self.before.good.items():
            if stamp in self.story.deleted:
                continue
            folder = _folder(self.machine, stamp)
            if not folder.is_dir():
                yield f"its good set {stamp} is gone"
            elif files_of(folder) != files:
                yield f"its good set {stamp} was changed: {files} is {files_of(folder)}"

    def _visible_sets(self) -> Iterator[str]:
        modes = self._modes()
        for folder in _set_folders(self.machine):
            is_made = modes.get(folder.name, "") in _MAKES_A_SET and not sets.manifest_of(folder).exists()
            if folder.name in self.story.deleted or is_made:
                continue
            if wrong := _wrong_in(folder, files_of(folder)):
                yield wrong

    def _actors(self) -> Iterator[str]:
        for leaf, writes in self._writes_by_leaf():
            claims = 0
            for write in writes:
                claims = claims + 1 if write.is_claim else 0
                if claims > 1:
                    yield f"its leaf {leaf} was claimed twice: {[str(each) for each in writes]}"

    def _untouched(self) -> Iterator[str]:
        if not self.story.untouched:
            return
        now = picture(self.machine)
        if now.inodes != self.before.inodes:
            yield "its images are other files than before"
        if now.definition != self.before.definition:
            yield "its definition is another than before"


def changed_by_another_start(before: dict[str, Picture], machines: list[Machine]) -> list[Violation]:
    """What an agent that was started once more changed, although nothing was left to do (I10)."""
    found = []
    for machine in machines:
        now, then = picture(machine), before[machine.name]
        same = (now.state, now.uuid, now.definition, now.inodes, now.good)
        if same != (then.state, then.uuid, then.definition, then.inodes, then.good):
            found.append(Violation(machine.name, "I10", f"another start changed {then} to {now}"))
    return found


def told(machine: Machine) -> str:
    """How a machine stands, for a person who wants to know why."""
    try:
        state = machine.node.domain(machine.name).state()
    except libvirt.libvirtError as why:
        state = str(why)
    return f"{machine.name}: libvirt says {state}, its guest {machine.serial.read_bytes()[-120:]!r}"


def is_up(machine: Machine) -> bool:
    """Whether it runs and counts, now."""
    last = ticks.last_count(machine.serial)
    try:
        until("a count", lambda: ticks.last_count(machine.serial) != last, 2)
    except LabError:
        return False
    return True
