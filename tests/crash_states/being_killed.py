"""Kills an agent after each of its side effects, and again after each of the recovery's: by states, not signals.

Whoever is killed leaves files and machines as they are, and takes along what it knew. So a run that nobody disturbs,
looked at after each thing it does, shows what a kill at any moment leaves. Each of these states is made real with the
very inodes it had, recovered from, and looked at in the same way; what that shows anew is recovered from once more.
"""

import os
import shutil
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_NAMES = ("link", "rename", "unlink", "mkdir", "rmdir", "fchmod", "ftruncate", "fsync", "fdatasync", "open")
_NO_WAITING = "posix_fadvise"  # dropping what is dirty writes it
_REAL = {name: getattr(os, name) for name in (*_NAMES, _NO_WAITING)}
_NEVER_DONE = ("fsync", "fdatasync")  # a kill loses nothing of what was written


class World(Protocol):
    """What an agent works on. `outside` wraps what goes on when the agent is killed: libvirt and qemu-img.

    `begins` is called where something out of the ordinary begins; kills before it are those of an ordinary run.
    """

    roots: Sequence[Path]
    outside: Callable[[Any], Any]
    begins: Callable[[], None]

    def act(self) -> None:
        """The run that is disturbed."""

    def recover(self) -> None:
        """As the product does it at its next start."""

    def check_at_once(self) -> None:
        """What holds even before anybody recovers."""

    def check(self) -> None:
        """What holds in the end."""

    def machine(self) -> Hashable:
        """What libvirt and QEMU know."""

    def set_machine(self, known: Any) -> None:
        """They know this."""


@dataclass(frozen=True)
class State:
    """What is left after something was done. Files by path and number; by number content, mode and time of change."""

    after: str
    directories: tuple[str, ...]
    names: tuple[tuple[str, int], ...]
    files: tuple[tuple[int, bytes, int, int], ...]
    machine: Hashable


@dataclass(frozen=True)
class Killed:
    """How many states one kill left, and how many more a second one in the recovery did."""

    once: int
    twice: int


def killed_twice(world: World) -> Killed:
    """Recover from every state that one kill, or two, may leave; AssertionError where that ends wrongly."""
    eye = _Eye(world)
    once = eye.seen_in(world.act)
    world.check()
    twice: dict[Hashable, State] = {}
    for state in once.values():
        with _told(state):
            found = eye.seen_in(lambda state=state: _recovered(eye, world, state))
        twice |= {key: _after(state, other) for key, other in found.items() if key not in once}
    for state in twice.values():
        with _told(state), eye.closed(), _watched(eye.look):
            _recovered(eye, world, state)
    return Killed(len(once), len(twice))


def _recovered(eye: "_Eye", world: World, state: State) -> None:
    with eye.closed():
        eye.make_real(state)
        world.check_at_once()
    world.recover()
    with eye.closed():
        world.check()


def _after(first: State, second: State) -> State:
    return State(f"{first.after}; then {second.after}", second.directories, second.names, second.files, second.machine)


@contextmanager
def _told(state: State) -> Iterator[None]:
    try:
        yield
    except BaseException as why:
        left = "\n  ".join(f"{path} #{number}" for path, number in state.names)
        why.add_note(f"killed after {state.after}\nleft:\n  {left}\n{state.machine}")
        raise


class _Outside:
    """Something that goes on when the agent is killed: what it was asked for is done wholly, or not yet."""

    def __init__(self, eye: "_Eye", thing: Any) -> None:
        self._eye = eye
        self._thing = thing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._eye.closed():
                result = found(*args, **kwargs)
            self._eye.look(name)
            return result

        return call


class _Eye:
    """Looks after each side effect. Every file keeps its inode for good, in a pool beside its root."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pools = {os.stat(root).st_dev: root.parent / f"kept-{root.name}" for root in world.roots}
        self._numbers: dict[tuple[int, int], int] = {}
        self._places: list[Path] = []
        self._contents: dict[int, tuple[bytes, int]] = {}
        self._seen: dict[Hashable, State] = {}
        self._closed = 1
        self._now = 1_600_000_000
        for pool in self._pools.values():
            pool.mkdir()
        self._state("")
        self._first = len(self._places)
        world.outside = lambda thing: _Outside(self, thing)
        world.begins = lambda: self._seen.clear()

    def seen_in(self, doing: Callable[[], None]) -> dict[Hashable, State]:
        """The states in a run, the first one included."""
        self._seen = {}
        with _watched(self.look):
            self._closed = 0
            try:
                self.look("nothing")
                doing()
            finally:
                self._closed = 1
        return self._seen

    @contextmanager
    def closed(self) -> Iterator[None]:
        """What is done in here is not the agent's."""
        self._closed += 1
        try:
            yield
        finally:
            self._closed -= 1

    def look(self, after: str) -> None:
        """Note how things are now."""
        if self._closed:
            return
        with self.closed():
            state = self._state(after)
            self._seen.setdefault(self._key(state), state)

    def make_real(self, state: State) -> None:
        """Files and machines as the state has them, and nothing else."""
        for root in self._world.roots:
            for name in os.listdir(root):
                path = root / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for directory in state.directories:
            Path(directory).mkdir(exist_ok=True)
        for number, content, mode, at in state.files:
            place = self._places[number]
            place.write_bytes(content)
            place.chmod(mode)
            os.utime(place, (at, at))
            self._contents[number] = (content, at)
        for path, number in state.names:
            os.link(self._places[number], path)
        self._world.set_machine(state.machine)

    def _state(self, after: str) -> State:
        self._now += 1
        directories, names, files = [], [], {}
        for root in self._world.roots:
            for directory, _, found in os.walk(root):
                directories.append(directory)
                for name in found:
                    path = f"{directory}/{name}"
                    status = os.lstat(path)
                    number = self._number(path, status)
                    names.append((path, number))
                    files[number] = self._file(number, status)
        told = tuple(files[number] for number in sorted(files))
        return State(after, tuple(directories), tuple(sorted(names)), told, self._world.machine())

    def _number(self, path: str, status: os.stat_result) -> int:
        key = (status.st_dev, status.st_ino)
        if key not in self._numbers:
            self._numbers[key] = len(self._places)
            self._places.append(self._pools[status.st_dev] / str(self._numbers[key]))
            _REAL["link"](path, self._places[-1])
        return self._numbers[key]

    def _file(self, number: int, status: os.stat_result) -> tuple[int, bytes, int, int]:
        """Times of change are in the order of the changes, whatever the clock's grain; a write gives another."""
        known = self._contents.get(number)
        if known is None or status.st_mtime_ns != known[1] * 10**9:
            content = self._places[number].read_bytes()
            if known is None or content != known[0]:
                known = self._contents[number] = (content, self._now)
            os.utime(self._places[number], (known[1], known[1]))
        return number, known[0], stat.S_IMODE(status.st_mode), known[1]

    def _key(self, state: State) -> Hashable:
        """Which state it is, whatever the numbers of new files and the time of day."""
        called: dict[int, int] = {}
        for _, number in state.names:
            called.setdefault(number, number if number < self._first else self._first + len(called))
        ages = sorted({at for *_, at in state.files})
        files = frozenset((called[number], content, mode, ages.index(at)) for number, content, mode, at in state.files)
        names = tuple((path, called[number]) for path, number in state.names)
        return state.directories, names, files, state.machine


@contextmanager
def _watched(look: Callable[[str], None]) -> Iterator[None]:
    """Every touch of a file in here is followed by a look."""

    def watched(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = None if name in _NEVER_DONE else _REAL[name](*args, **kwargs)
            if name != "open" or args[1] & os.O_CREAT:
                look(f"{name} {args[0]}")
            return result

        return call

    try:
        for name in _NAMES:
            setattr(os, name, watched(name))
        setattr(os, _NO_WAITING, lambda *_: None)
        yield
    finally:
        for name, real in _REAL.items():
            setattr(os, name, real)
