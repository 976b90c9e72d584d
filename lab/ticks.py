"""Reading what Linux guests leave behind: counts and pattern checks on the serial log, the ring of records on a disk.

Guest clocks stand still while a machine is saved; how long a machine was away is only seen from outside: `Follower`.
"""

import itertools
import re
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lab import programs
from lab.errors import LabError
from lab.machines import PARTITION_START

SECTOR = 512
RING_SECTORS = 4096
_EXT4_MAGIC, _EXT4_RECOVER = 0xEF53, 0x4
# The time that the synced writes took stands only in the printed line: it is not known before they are done.
_COUNT = re.compile(r"T (\d+) (\d+) (\d+)(?: (\d+))?$")
_BEGUN = re.compile(rb"T (\d+) \d")
_FILE_WRITE = re.compile(r"W (\d+) (\d+)$")


@dataclass(frozen=True)
class Count:
    """One count: number, the guest's monotonic and real-time clocks in ns, and the ns its slowest synced write took."""

    seq: int
    monotonic: int
    realtime: int
    taken: int = 0


@dataclass(frozen=True)
class SerialLog:
    """All whole lines of a serial log: counts in order, checks (True: as written), the complaints among them."""

    counts: tuple[Count, ...]
    checks: tuple[bool, ...]
    complaints: tuple[str, ...]

    @property
    def last(self) -> int:
        """The newest count, 0 where there is none."""
        return self.counts[-1].seq if self.counts else 0

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Pairs of neighbouring counts that do not follow each other: numbers left out, repeated or gone backwards."""
        seqs = [count.seq for count in self.counts]
        return [(before, after) for before, after in itertools.pairwise(seqs) if after != before + 1]


def read_serial(path: Path) -> SerialLog:
    """Read a serial log; a line that is not finished yet is left out."""
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = [line.rstrip("\r") for line in text[: text.rfind("\n") + 1].split("\n")]
    counts = [Count(*map(int, found.groups("0"))) for line in lines if (found := _COUNT.match(line))]
    checks = [line for line in lines if line.startswith(("V ", "P "))]
    complaints = [line for line in checks if " BAD" in line]
    return SerialLog(tuple(counts), tuple(" BAD" not in line for line in checks), tuple(complaints))


def last_count(path: Path) -> int:
    """The newest count on a serial log, read from its end; 0 where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            tail = file.read().decode(errors="replace")
    except FileNotFoundError:
        return 0
    whole = tail[: tail.rfind("\n") + 1].split("\n")
    found = [int(match.group(1)) for line in whole if (match := _COUNT.match(line.rstrip("\r")))]
    return found[-1] if found else 0


def counts_since(path: Path, offset: int) -> list[int]:
    """What was counted from a place in a serial log on, in order.

    A guest that is stopped for another memory leaves half a line, and the other memory may begin in the middle of one:
    a count is found wherever it stands.
    """
    if not path.exists():
        return []
    return [int(number) for number in _BEGUN.findall(path.read_bytes()[offset:])]


def write_latencies(path: Path, first: int = 0, last: int | None = None) -> dict[int, float]:
    """Count → seconds that its synced write took by the guest's own clock, for the counts from `first` to `last`.

    The guest's clock stands still with the guest: what it did not live through is not in here.
    """
    counts = read_serial(path).counts
    return {each.seq: each.taken / 1e9 for each in counts if first <= each.seq and (last is None or each.seq <= last)}


def newest_file_write(path: Path) -> int:
    """The number of the newest synced write to the guest's filesystem since it booted last; 0 where there is none.

    It stands still while the filesystem is frozen. Only guests with an agent have one.
    """
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = (line.rstrip("\r") for line in reversed(text[: text.rfind("\n") + 1].split("\n")))
    return next((int(found.group(1)) for line in lines if (found := _FILE_WRITE.match(line))), 0)


def newest_on_disk(image: Path, form: str = "qcow2") -> int:
    """The newest count in the ring of an image and its chain; 0 where there is none. A running machine's disk too."""
    ring = _first_bytes(image, form, SECTOR * RING_SECTORS)
    sectors = (ring[at : at + SECTOR].split(b"\n")[0].decode(errors="replace") for at in range(0, len(ring), SECTOR))
    return max((int(found.group(1)) for text in sectors if (found := _COUNT.match(text))), default=0)


def needs_recovery(image: Path, form: str = "qcow2") -> bool:
    """Whether the ext4 of a guest with an agent lies on an image as it does after a crash: in use, not frozen."""
    start = PARTITION_START << 20
    superblock = _first_bytes(image, form, start + 65536)[start + 1024 : start + 2048]
    magic, features = struct.unpack_from("<H", superblock, 0x38)[0], struct.unpack_from("<I", superblock, 0x60)[0]
    if magic != _EXT4_MAGIC:
        raise LabError(f"{image} has no ext4 at {start}: its machine has no guest agent, or the data is lost")
    return bool(features & _EXT4_RECOVER)


def _first_bytes(image: Path, form: str, size: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vmkeep-lab-") as folder:
        out = Path(folder) / "first"
        arguments = ["qemu-img", "dd", "-U", "-f", form, "-O", "raw", "bs=65536", f"count={size // 65536}"]
        programs.run([*arguments, f"if={image}", f"of={out}"])
        return out.read_bytes()


class Follower:
    """Notes when each count arrives on a serial log, by the host's clock; a context manager with its own thread."""

    def __init__(self, path: Path, step: float = 0.001) -> None:
        self._path = path
        self._step = step
        self._ended = threading.Event()
        self._arrivals: list[tuple[int, float]] = []
        self._thread = threading.Thread(target=self._follow, name=f"follow {path.name}", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_reason: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def arrivals(self) -> list[tuple[int, float]]:
        """(count, monotonic seconds of the host) in order."""
        return list(self._arrivals)

    def idle(self) -> float:
        """Seconds since the newest count."""
        return time.monotonic() - self._arrivals[-1][1] if self._arrivals else 0.0

    def widest_gap(self) -> float:
        """The longest time between two counts, in seconds."""
        times = [moment for _, moment in self.arrivals]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def _follow(self) -> None:
        with self._path.open("rb") as file:
            file.seek(0, 2)
            rest = b""
            while not self._ended.wait(self._step):
                data = file.read()
                moment = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                found = (_COUNT.match(line.decode(errors="replace").rstrip("\r")) for line in lines)
                self._arrivals += [(int(match.group(1)), moment) for match in found if match]
