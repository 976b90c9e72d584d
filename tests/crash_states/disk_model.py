"""What a filesystem may show after power was lost: a model of it, fed with operations, asked for its possible states.

Only what was fsynced is certain. Of a file that was not: what it held when it last was, nothing, half of it, zeros, or
what was written. Of a directory that was not: any of its new, changed and removed names, whatever their order. A rename
is one change within a directory; between two, the new name may be there before the old one is gone, never neither.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeVar

MOST_STATES = 64  # of one moment, where it has more: each change alone, each missing, every prefix, and some by chance
_SEED = 20261121
_IMAGE = b"QFI\xfb"  # QEMU orders its own writes to an image: a change is there or is not


@dataclass(eq=False)
class File:
    """One inode. `durable` is what it held when it last was fsynced, None where it never was."""

    number: int
    durable: bytes | None = None
    versions: list[bytes] = field(default_factory=list)

    @property
    def now(self) -> bytes:
        """What a reader sees while power is there."""
        return self.versions[-1] if self.versions else self.durable or b""

    def write(self, content: bytes) -> None:
        """It holds this now."""
        self.versions.append(content)

    def sync(self) -> None:
        """What it holds is there for good."""
        self.durable, self.versions = self.now, []

    def after_power_loss(self) -> list[bytes]:
        """What it may hold then, what was written first."""
        if not self.versions:
            return [self.durable or b""]
        last, base = self.versions[-1], self.durable or b""
        if base.startswith(_IMAGE):
            return list(dict.fromkeys([last, base, *self.versions[-3:-1]]))
        same = min(len(base), len(last))  # what was there is there, old or new; only what is added can be missing
        half = last[: same + (len(last) - same) // 2]
        zeros = last[:same] + bytes(len(last) - same)
        return list(dict.fromkeys([last, base, half, zeros, *self.versions[-3:-1]]))


@dataclass(eq=False)
class Directory:
    """`names` as a reader sees them, `durable` what is certain: the change that came last, and what it left."""

    names: dict[str, "Node"] = field(default_factory=dict)
    durable: dict[str, tuple[int, "Node | None"]] = field(default_factory=dict)


Node = File | Directory
T = TypeVar("T")


@dataclass(eq=False)
class Change:
    """One name that came (`node`) or went (None), and, of a rename, the name that goes with it."""

    order: int
    directory: Directory
    name: str
    node: Node | None
    also_gone: "Change | None" = None

    @property
    def ways(self) -> list[tuple["Change", ...]]:
        """What of it may be there: nothing, all, and of a rename between directories the new name alone."""
        if self.also_gone is None:
            return [(), (self,)]
        both = (self, self.also_gone)
        return [(), both] if self.also_gone.directory is self.directory else [(), both, (self,)]

    def make_durable(self) -> None:
        """It is certain from now on, unless a later one was before it."""
        known = self.directory.durable.get(self.name)
        if known is None or known[0] < self.order:
            self.directory.durable[self.name] = (self.order, self.node)


@dataclass(frozen=True)
class State:
    """Files by path and number, what they hold by number, and directories, parents first."""

    directories: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    contents: tuple[tuple[int, bytes], ...]


class Disk:
    """Directories below some roots, which are there for good. Paths are absolute."""

    def __init__(self, roots: Iterable[PurePosixPath]) -> None:
        self.roots = {root: Directory() for root in roots}
        self.pending: list[Change] = []
        self._counter = itertools.count(1)

    # what happens

    def make(self, path: PurePosixPath, node: Node) -> None:
        """A new name, of a new file or directory or of one that has others."""
        self._change(path, node)

    def remove(self, path: PurePosixPath) -> None:
        """A name goes."""
        self._change(path, None)

    def rename(self, old: PurePosixPath, new: PurePosixPath) -> None:
        """A name becomes another, over whatever bore that."""
        node, directory = self.at(old), self.directory(old.parent)
        assert node is not None, old
        if self.at(new) is node and old != new:
            return  # two names of one file: POSIX does nothing
        gone = Change(next(self._counter), directory, old.name, None)
        directory.names.pop(old.name)
        self._change(new, node, gone)

    def sync_directory(self, path: PurePosixPath) -> None:
        """Its names are certain now; of a rename out of it, the new name is too."""
        synced, left = self.directory(path), []
        for change in self.pending:
            gone = change.also_gone
            if gone is not None and gone.directory is synced:
                change.make_durable()
                gone.make_durable()
            elif change.directory is synced:
                change.make_durable()
                left += [gone] if gone is not None else []
            else:
                left.append(change)
        self.pending = left

    def _change(self, path: PurePosixPath, node: Node | None, gone: Change | None = None) -> None:
        directory = self.directory(path.parent)
        self.pending.append(Change(next(self._counter), directory, path.name, node, gone))
        if node is None:
            directory.names.pop(path.name)
        else:
            directory.names[path.name] = node

    # what a reader sees

    def at(self, path: PurePosixPath) -> Node | None:
        """What bears a path."""
        if path in self.roots:
            return self.roots[path]
        parent = self.at(path.parent)
        return parent.names.get(path.name) if isinstance(parent, Directory) else None

    def directory(self, path: PurePosixPath) -> Directory:
        """The same of a directory that is there."""
        found = self.at(path)
        assert isinstance(found, Directory), path
        return found

    def settle(self) -> None:
        """Everything has long been on the disk."""
        for change in self.pending:
            for part in (change, change.also_gone):
                if part is not None:
                    part.make_durable()
        self.pending = []
        for node in _below(self.roots.values()):
            if isinstance(node, File):
                node.sync()

    # what may be left of it

    def states(self, most: int = MOST_STATES) -> Iterator[State]:
        """What may be there after power is lost now; everything where that is little, else what `_some` picks."""
        for kept in _some([change.ways for change in self.pending], most):
            changes = [part for change in kept for part in change]
            trees = {str(root): tree for root, tree in self.roots.items()}
            directories, files = _walk(trees, _latest(changes))
            unsure = {file.number: file for _, file in files}
            whole = [[(file.number, content) for content in file.after_power_loss()] for file in unsure.values()]
            names = tuple((path, file.number) for path, file in files)
            for contents in _some(whole, most):
                yield State(tuple(directories), names, tuple(contents))


_Latest = dict[tuple[int, str], tuple[int, Node | None]]


def _latest(changes: Sequence[Change]) -> _Latest:
    found: _Latest = {}
    for change in sorted(changes, key=lambda change: change.order):
        found[id(change.directory), change.name] = (change.order, change.node)
    return found


def _walk(trees: dict[str, Directory], changed: _Latest) -> tuple[list[str], list[tuple[str, File]]]:
    directories, files = list(trees), []
    waiting = list(trees.items())
    while waiting:
        path, directory = waiting.pop(0)
        names = {**dict.fromkeys(directory.durable), **{name: None for at, name in changed if at == id(directory)}}
        for name in sorted(names):
            nothing: tuple[int, Node | None] = (0, None)
            known = directory.durable.get(name, nothing), changed.get((id(directory), name), nothing)
            _, node = max(known, key=lambda entry: entry[0])
            if isinstance(node, Directory):
                directories.append(f"{path}/{name}")
                waiting.append((f"{path}/{name}", node))
            elif node is not None:
                files.append((f"{path}/{name}", node))
    return directories, files


def _below(directories: Iterable[Directory]) -> Iterator[Node]:
    for directory in directories:
        for node in directory.names.values():
            yield node
            if isinstance(node, Directory):
                yield from _below([node])


def _some(ways: Sequence[Sequence[T]], most: int) -> Iterator[list[T]]:
    """One of each in every combination; where these are too many, the telling ones and some by chance."""
    count = 1
    for choices in ways:
        count *= len(choices)
    if count <= most:
        yield from map(list, itertools.product(*ways))
        return
    seen = set()
    for picked in itertools.islice(_telling([len(choices) for choices in ways]), 20 * most):
        if picked not in seen:
            seen.add(picked)
            yield [choices[min(at, len(choices) - 1)] for choices, at in zip(ways, picked, strict=True)]
        if len(seen) == most:
            return


def _telling(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """None, all, all but one, one alone, every prefix in time; then by chance, the same each time."""
    number, some = len(lengths), random.Random(_SEED)
    yield (0,) * number
    yield (1,) * number
    for at in range(number):
        for way in range(lengths[at]):
            yield tuple(way if place == at else 1 for place in range(number))
            yield tuple(way if place == at else 0 for place in range(number))
        yield tuple(int(place < at) for place in range(number))
    while True:
        yield tuple(some.randrange(length) for length in lengths)
