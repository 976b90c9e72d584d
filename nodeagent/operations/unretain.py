"""Unretain: bring a set back to the retain directory, small files first, so that a person can look and decide.

    small:  note → directory → description → entry → conflicts
    large:  one step a file → images

The machine is not touched. What the small files say may be edited in retain; the large ones are copied with their
digests taken on the way, and every image is checked. Taking back removes what was brought.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import PurePosixPath

from nodeagent.host.copying import Pace, copy_file
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import Access, Folder, make_folder, open_folder, remove_empty, remove_file
from nodeagent.order import Order, SavedFile
from nodeagent.steps import NO_FACTS, Facts, Host, Step, access
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused

CONFLICTS_FOR_PEOPLE = "conflicts.txt"
CONFLICTS_FOR_PROGRAMS = "conflicts.json"
_PRIVATE = Access(mode=0o600)


def unretain_small_files(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps that bring description and entry back, beside what differs from the live ones."""
    small = _Small(order, host)
    paths, restored = order.paths, order.set
    xml, ldif = paths.kept_name(paths.xml), paths.kept_name(paths.ldif)
    texts = (
        ("description", "bring the description back", ReturnValue.CANNOT_COPY_XML, xml, restored.xml),
        ("entry", "bring the entry back", ReturnValue.CANNOT_COPY_BACKEND_FILE, ldif, restored.ldif),
        ("conflicts", "note what differs", ReturnValue.CANNOT_COPY_FILE, CONFLICTS_FOR_PROGRAMS, order.set.conflicts),
        ("report", "say what differs", ReturnValue.CANNOT_COPY_FILE, CONFLICTS_FOR_PEOPLE, order.set.report),
    )  # fmt: skip
    written = (
        Step(name, doing, code, partial(small.write, file, text)).undone_by(partial(small.remove, file))
        for name, doing, code, file, text in texts
    )
    return (
        Step("note", "note the restore", ReturnValue.CANNOT_COPY_FILE, small.note).undone_by(small.forget),
        Step("directory", "make the retain directory", ReturnValue.CANNOT_CREATE_DIRECTORY, small.make_directory)
        .undone_by(small.remove_directory),
        *written,
    )  # fmt: skip


def unretain_large_files(order: Order, host: Host) -> tuple[Step, ...]:
    """The steps that bring memory, disks and firmware back."""
    large = _Large(order, host)
    codes = {"disk": ReturnValue.CANNOT_COPY_IMAGE}
    fetches = (
        Step(
            f"fetch {file.kept}",
            f"bring {file.name} back",
            codes.get(file.role, ReturnValue.CANNOT_COPY_FILE),
            partial(large.fetch, file),
        ).undone_by(partial(large.remove, file))
        for file in order.set.files
    )
    return (*fetches, Step("images", "check the images", ReturnValue.CORRUPT_IMAGE, large.check_images))


class _Small:
    """The texts of one restore in retain. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    def note(self, _facts: Facts) -> Facts:
        self._host.unretained.note(self._order)
        return NO_FACTS

    def forget(self, _facts: Facts) -> Facts:
        self._host.unretained.forget(self._order)
        return NO_FACTS

    def make_directory(self, _facts: Facts) -> Facts:
        with make_folder(self._order.paths.retain, self._host.roots, access(self._order.directories)) as retain:
            retain.sync()
        return NO_FACTS

    def remove_directory(self, _facts: Facts) -> Facts:
        remove_empty(self._order.paths.retain, self._order.paths.retain_root, self._host.roots)
        return NO_FACTS

    def write(self, name: str, text: str, _facts: Facts) -> Facts:
        with open_folder(self._order.paths.retain, self._host.roots) as retain:
            retain.write(name, text.encode(), _PRIVATE)
        return NO_FACTS

    def remove(self, name: str, _facts: Facts) -> Facts:
        remove_file(self._order.paths.retain / name, self._host.roots)
        return NO_FACTS


class _Large:
    """The large files of one restore in retain. Each verb may be repeated."""

    def __init__(self, order: Order, host: Host) -> None:
        self._order = order
        self._host = host

    def fetch(self, file: SavedFile, _facts: Facts) -> Facts:
        """One file, refused unless it reads as it did when it was backed up."""
        with self._folders() as (source, retain):
            retain.remove(file.kept)  # of an attempt that did not live to note its end
            content = self._copied(source, retain, file)
            if content != file.digest:
                retain.remove(file.kept)
                raise Refused(
                    ReturnValue.CORRUPT_IMAGE,
                    f"{self._order.machine}: {source.path / file.name} is damaged: it reads as {content}, and "
                    f"{file.digest} was backed up; nothing of the machine was touched; restore from another set",
                )
        return NO_FACTS

    def _copied(self, source: Folder, retain: Folder, file: SavedFile) -> str:
        try:
            pace = Pace(self._order.bandwidth_copy << 20, self._host.stop)
            return copy_file((source, file.name), (retain, file.kept), _PRIVATE, self._host.progress, pace).digest
        except FileNotFoundError:
            raise Refused(
                ReturnValue.MISSING_FILES,
                f"{self._order.machine}: {source.path / file.name} is missing; restore from another set",
            ) from None

    def remove(self, file: SavedFile, _facts: Facts) -> Facts:
        with suppress(FileNotFoundError), open_folder(self._order.paths.retain, self._host.roots) as retain:
            retain.remove_made(file.kept)
            retain.sync()
        return NO_FACTS

    def check_images(self, _facts: Facts) -> Facts:
        """Every image a plain, whole and consistent one: its header by our own eyes before a tool opens it."""
        for file in self._order.set.files:
            if file.role == "disk":
                path = PurePosixPath(self._order.paths.retain) / file.kept
                backing = self._host.header(path).backing_file
                if backing is not None:
                    raise HostFailure(f"{file.name} lies over {backing}; an image of a set is whole")
                self._host.images.check(path)
        return NO_FACTS

    @contextmanager
    def _folders(self) -> Iterator[tuple[Folder, Folder]]:
        with (
            open_folder(PurePosixPath(self._order.set.set_directory), self._host.roots) as source,
            open_folder(self._order.paths.retain, self._host.roots) as retain,
        ):
            yield source, retain
