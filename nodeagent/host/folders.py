"""Directories held by descriptor: files are made, linked, renamed and removed in them without following a link.

Every path from the directory comes through `open_folder` or `make_folder`: it must lie below a root that the local
settings allow, and no component below that root may be a symbolic link. Called by the operations; libvirt and
qemu-img get paths.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from nodeagent.host.errors import HostFailure

_BLOCK = 512  # the unit of st_blocks
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Access:
    """Owner, group and mode to set; None leaves what is there."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    def apply(self, descriptor: int) -> None:
        """Set them on an open file or directory."""
        if self.uid is not None or self.gid is not None:
            os.fchown(descriptor, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)
        if self.mode is not None:
            os.fchmod(descriptor, self.mode)


@dataclass(frozen=True)
class Folder:
    """One open directory."""

    path: Path
    descriptor: int

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name."""
        return self.status(name) is not None

    def status(self, name: str) -> os.stat_result | None:
        """What stat says of a name, not following a link; None where there is none."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def has_folder(self, name: str) -> bool:
        """Whether there is a directory of this name; a link to one is none."""
        found = self.status(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator["Folder"]:
        """A directory right here; HostFailure where it is a link. Wherever this one was moved, it is entered."""
        path = self.path / name
        descriptor = _step_into(os.dup(self.descriptor), name, path, None)
        try:
            yield Folder(path, descriptor)
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """What lies here, sorted."""
        return sorted(os.listdir(self.descriptor))

    @contextlib.contextmanager
    def opened(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> Iterator[int]:
        """A plain file's descriptor; a link, pipe or device is refused."""
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=self.descriptor)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise HostFailure(f"{self.path / name} is not a plain file")
            yield descriptor
        finally:
            _close(descriptor)

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[int]:
        """A new file to be filled, under a partial name; durable before it bears its own, and gone where that fails.

        Never over an existing file. A failed fsync is not tried again: the kernel has dropped what it could not write.
        Whoever begins takes the partial name over; who had it before, perhaps on another node, gives it to nobody.
        """
        if self.exists(name):
            raise HostFailure(f"{self.path / name} exists; nothing is written over")
        partial = _partial(name)
        self.remove(partial)
        with self.opened(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            try:
                yield descriptor
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                if not self._bears(partial, descriptor):
                    raise HostFailure(f"{self.path / partial} is not ours any more; somebody else makes {name} by now")
                self.give_name(partial, name)
            finally:
                if self._bears(partial, descriptor):
                    self.remove(partial)  # also where the disk is full: it keeps nothing that nobody needs
        self.sync()

    def _bears(self, name: str, descriptor: int) -> bool:
        """Whether a name here is that of an open file; none is, of a file that another node has removed on NFS."""
        try:
            found = self.status(name)
            return found is not None and os.path.samestat(found, os.fstat(descriptor))
        except OSError as why:
            if why.errno == errno.ESTALE:
                return False
            raise

    @contextlib.contextmanager
    def nameless(self) -> Iterator[int]:
        """A file here that never has a name, gone when it is closed. OSError where the filesystem has none."""
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        descriptor = os.open(".", flags, 0o600, dir_fd=self.descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, name: str, most: int = 16 << 20) -> bytes:
        """A small file's content."""
        with self.opened(name) as descriptor:
            if os.fstat(descriptor).st_size > most:
                raise HostFailure(f"{self.path / name} is larger than {most} bytes")
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read()

    def write(self, name: str, content: bytes, access: Access) -> None:
        """Put a small file in place as a whole: temporary name, fsync, rename, fsync of the directory."""
        making = _partial(f".{name}")
        self.remove(making)
        try:
            with self.opened(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
                access.apply(descriptor)
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    file.write(content)
                os.fsync(descriptor)
            os.rename(making, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError:
            self.remove(making)  # where the disk is full, half a file is in nobody's way
            raise
        self.sync()

    def set_access(self, name: str, access: Access) -> None:
        """Owner, group and mode of a file here, durable."""
        with self.opened(name) as descriptor:
            access.apply(descriptor)
            os.fsync(descriptor)

    def link_to(self, name: str, target: "Folder", new_name: str) -> None:
        """Give a file a second name elsewhere on the same filesystem; done where it has it, never over another file."""
        try:
            os.link(name, new_name, src_dir_fd=self.descriptor, dst_dir_fd=target.descriptor, follow_symlinks=False)
        except FileExistsError:
            if not self.is_same(name, target, new_name):
                raise HostFailure(
                    f"{target.path / new_name} exists and is another file; nothing is written over"
                ) from None

    def give_name(self, making: str, name: str) -> None:
        """Give what was made here its name, never over another file; its first name may stay.

        Where the filesystem knows no second names (CIFS, exFAT) it is renamed, after a look that nothing is there: the
        machine's lock keeps everybody else of ours away.
        """
        try:
            self.link_to(making, self, name)
        except OSError as why:
            if why.errno not in _NO_LINKS:
                raise
            if self.exists(name):
                raise HostFailure(f"{self.path / name} exists; nothing is written over") from None
            os.rename(making, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def is_same(self, name: str, other: "Folder", other_name: str) -> bool:
        """Whether two names are one file."""
        mine, theirs = self.status(name), other.status(other_name)
        return mine is not None and theirs is not None and os.path.samestat(mine, theirs)

    def rename_over(self, name: str, target: "Folder", new_name: str) -> None:
        """Rename, replacing what bears the new name in one step."""
        os.rename(name, new_name, src_dir_fd=self.descriptor, dst_dir_fd=target.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file; fine where it is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def remove_made(self, name: str) -> None:
        """Remove a file, and what an attempt at making or writing it left."""
        for left in (name, _partial(name), _partial(f".{name}")):
            self.remove(left)

    def sync(self) -> None:
        """Make names durable."""
        os.fsync(self.descriptor)

    def free_bytes(self) -> int:
        """What an ordinary writer may still use here."""
        found = os.fstatvfs(self.descriptor)
        return found.f_bavail * found.f_frsize

    def allocated(self, name: str) -> int:
        """Bytes that a file takes up here, holes left out; 0 where there is none."""
        found = self.status(name)
        return found.st_blocks * _BLOCK if found else 0

    def allocated_so_far(self, name: str) -> int:
        """The same of a file that is being made here."""
        return self.allocated(_partial(name))

    def size_bytes(self) -> int:
        """How large the filesystem is."""
        found = os.fstatvfs(self.descriptor)
        return found.f_blocks * found.f_frsize

    @property
    def device(self) -> int:
        """The filesystem's number: renames work within one."""
        return os.fstat(self.descriptor).st_dev

    @property
    def filesystem(self) -> tuple[int, int]:
        """The device's number and the filesystem's own: a number alone may belong to another one tomorrow."""
        return self.device, os.fstatvfs(self.descriptor).f_fsid


@contextlib.contextmanager
def open_folder(path: PurePath, roots: Sequence[str]) -> Iterator[Folder]:
    """An existing directory below one of the roots.

    FileNotFoundError where it is missing, HostFailure where not allowed.
    """
    descriptor = _walk(path, roots, None)
    try:
        yield Folder(Path(path), descriptor)
    finally:
        os.close(descriptor)


def names_in(path: PurePath, roots: Sequence[str]) -> list[str]:
    """What lies in a directory, sorted; nothing where it is missing."""
    try:
        with open_folder(path, roots) as folder:
            return folder.names()
    except FileNotFoundError:
        return []


def remove_file(path: PurePath, roots: Sequence[str]) -> None:
    """Remove one file and what an attempt at it left, durably; fine where it or its directory is gone."""
    with contextlib.suppress(FileNotFoundError), open_folder(path.parent, roots) as folder:
        folder.remove_made(path.name)
        folder.sync()


@contextlib.contextmanager
def make_folder(path: PurePath, roots: Sequence[str], access: Access) -> Iterator[Folder]:
    """A directory below one of the roots; what is missing of it is made, with this access."""
    descriptor = _walk(path, roots, access)
    try:
        yield Folder(Path(path), descriptor)
    finally:
        os.close(descriptor)


def remove_empty(path: PurePath, stop: PurePath, roots: Sequence[str]) -> None:
    """Remove a directory and its parents below `stop`, as far as they are empty."""
    current = path
    while current != stop and current.is_relative_to(stop):
        try:
            with open_folder(current.parent, roots) as parent:
                os.rmdir(current.name, dir_fd=parent.descriptor)
                parent.sync()
        except FileNotFoundError:
            pass
        except OSError as why:
            if why.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                return
            raise
        current = current.parent


def _close(descriptor: int) -> None:
    """NFS may say only now that another node has removed the file; what had to be kept was fsynced, which tells."""
    try:
        os.close(descriptor)
    except OSError as why:
        if why.errno != errno.ESTALE:
            raise


def _partial(name: str) -> str:
    return f"{name}.partial"


def root_of(path: PurePath, roots: Sequence[str]) -> PurePath | None:
    """The allowed root a path lies below, the longest if several."""
    fitting = [PurePath(root) for root in roots if path.is_relative_to(root)]
    return max(fitting, key=lambda root: len(root.parts), default=None)


def _walk(path: PurePath, roots: Sequence[str], access: Access | None) -> int:
    root = root_of(path, roots)
    if root is None or ".." in path.parts:
        raise HostFailure(f"{path} lies outside the roots allowed on this node: {', '.join(roots)}")
    # The root itself is the admin's word in a local file and may be a link; nothing below it may.
    descriptor = os.open(os.path.realpath(root), _DIRECTORY)
    for part in path.relative_to(root).parts:
        descriptor = _step_into(descriptor, part, path, access)
    return descriptor


def _step_into(descriptor: int, part: str, path: PurePath, access: Access | None) -> int:
    try:
        for _ in range(100):  # another machine's clean-up may remove an empty parent between making and opening
            try:
                found = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except FileNotFoundError:
                if access is None:
                    raise
                _make(descriptor, part, access)
            else:
                return found if access is None else _durable_in(descriptor, found)
        raise HostFailure(f"{path} is removed as often as it is made")
    except OSError as why:
        if why.errno in (errno.ELOOP, errno.ENOTDIR):
            raise HostFailure(f"{path}: {part!r} is a symbolic link or no directory; links are not followed") from None
        raise
    finally:
        os.close(descriptor)


def _durable_in(parent: int, directory: int) -> int:
    """The open directory, once its name is on the disk: whoever made it may have been killed before that."""
    try:
        os.fsync(parent)
    except OSError:
        os.close(directory)
        raise
    return directory


def _make(parent: int, name: str, access: Access) -> None:
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.mkdir(name, 0o700, dir_fd=parent)
        made = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            access.apply(made)
            os.fsync(made)
        finally:
            os.close(made)
