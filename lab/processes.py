"""Processes the lab started: known by pid and start time, so that no other process is ever ended by mistake."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import programs
from lab.waiting import until

# Children of this very process have to be waited for, or they stay as zombies.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True)
class Process:
    """One process: `started` is its start in clock ticks since boot; pid and start time are unique together."""

    name: str = field(compare=False)
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs; a zombie does not."""
        child = _children.get(self.pid)
        if child is not None and child.poll() is not None:
            del _children[self.pid]
        found = _stat(self.pid)
        return found is not None and found[2] == self.started and found[0] not in "ZX"

    @property
    def exists(self) -> bool:
        """Whether the kernel still knows it, if only as a zombie."""
        return self.alive or ((found := _stat(self.pid)) is not None and found[2] == self.started)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send one signal, to this process only."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(
    name: str, arguments: Sequence[str | Path], log: Path, extra_environment: Mapping[str, str] | None = None
) -> Process:
    """Start a daemon in its own session, its words appended to `log`; it lives on when this process ends."""
    argv = [programs.locate(str(arguments[0])), *map(str, arguments[1:])]
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**programs.environment(), **(extra_environment or {})},
        )
    _children[child.pid] = child
    return identify(name, child.pid) or Process(name, child.pid, -1)


def identify(name: str, pid: int) -> Process | None:
    """The process that has this pid now."""
    found = _stat(pid)
    return None if found is None else Process(name, pid, found[2])


def descendants(pid: int) -> list[Process]:
    """Children, their children, and so on."""
    parents = {each: found[1] for each in all_pids() if (found := _stat(each)) is not None}
    known, grown = {pid}, True
    while grown:
        more = {each for each, parent in parents.items() if parent in known} - known
        known |= more
        grown = bool(more)
    return _identified(known - {pid})


def seeing(folder: Path, at: str) -> list[Process]:
    """Every process in a mount namespace that shows `folder` at `at`: libvirtd, its guests, their helpers."""
    return _identified(pid for pid in all_pids() if _sees(pid, folder, at))


def stop(victims: Sequence[Process], grace: float = 5.0) -> None:
    """End processes: TERM, after `grace` seconds KILL, then wait until they are gone."""
    if grace > 0:
        for victim in victims:
            victim.kill(signal.SIGTERM)
        with contextlib.suppress(Exception):
            until("the end of a process", lambda: not any(victim.alive for victim in victims), grace)
    for victim in victims:
        victim.kill()
    names = ", ".join(f"{victim.name} ({victim.pid})" for victim in victims)
    until(f"the end of {names} after KILL", lambda: not any(victim.alive for victim in victims), 20)


def all_pids() -> list[int]:
    """Every pid there is now."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _identified(pids: Iterable[int]) -> list[Process]:
    found = (identify(_command(pid), pid) for pid in pids)
    return [process for process in found if process is not None]


def _sees(pid: int, folder: Path, at: str) -> bool:
    try:
        return Path(f"/proc/{pid}/root{at}").samefile(folder) and not Path(at).samefile(folder)
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _stat(pid: int) -> tuple[str, int, int] | None:
    """(state, parent, start time), or None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])
