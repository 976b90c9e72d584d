"""What lies in a backup root, from the manifests alone; asks no directory. Called by `sets` and `rebuild-catalogue`.

    <root>/<vmtype>/<storage pool>/<machine>/<timestamp>/manifest.json.<timestamp>

A backup root may hold anything: symbolic links are never followed, no file is read beyond a bound, and what has no
place in this layout is passed over.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from pydantic import ValidationError

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.machine import check_name
from vmkeep.contract.manifest import Manifest
from vmkeep.contract.paths import MACHINE_TYPES, MANIFEST_NAME
from vmkeep.contract.timestamps import is_timestamp

_LARGEST_MANIFEST = 4 << 20
_LARGEST_LDIF = 16 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never wait for the other end of a pipe


@dataclass(frozen=True)
class BackupSet:
    """One set: where it lies, its manifest, and the digest of the manifest's text (`blake3:…`)."""

    directory: Path
    manifest: Manifest
    digest: str


@dataclass(frozen=True)
class NoSet:
    """A directory that should hold a set (or sets) and does not; `reason` is a sentence's end."""

    directory: Path
    reason: str


@dataclass(frozen=True)
class Found:
    """All of a backup root, by machine and time."""

    sets: tuple[BackupSet, ...]
    no_sets: tuple[NoSet, ...]


class _Unusable(Exception):  # noqa: N818 - never leaves this module
    """Why a file cannot be used, as a sentence's end."""


def find(root: Path, machine: str | None = None) -> Found:
    """The sets below a backup root, of one machine or all. Refused where there is no such directory."""
    sets: list[BackupSet] = []
    no_sets: list[NoSet] = []
    for one in _walk(root.absolute(), machine):
        sets.append(one) if isinstance(one, BackupSet) else no_sets.append(one)
    by_machine_and_time = sorted(sets, key=lambda one: (one.manifest.machine, one.manifest.timestamp, one.directory))
    return Found(tuple(by_machine_and_time), tuple(sorted(no_sets, key=lambda one: one.directory)))


def read_ldif(found: BackupSet) -> str:
    """The machine's directory entry as the set holds it, its digest checked; Refused where it cannot be trusted."""
    manifest = found.manifest
    place = f"{manifest.machine}: the set {found.directory}"
    file = next((file for file in manifest.files if file.role == "ldif"), None)
    if file is None:
        raise Refused(ReturnValue.MISSING_FILES, f"{place} holds no directory entry: its manifest names no LDIF")
    try:
        with _opened(found.directory) as folder:
            content = _read(folder, file.name, _LARGEST_LDIF)
        if _digest(content) != file.digest:
            raise Refused(
                ReturnValue.CORRUPT_IMAGE, f"{place}: {file.name} is not what the manifest says: digest differs"
            )
        return content.decode()
    except (OSError, _Unusable, UnicodeDecodeError) as why:
        raise Refused(ReturnValue.MISSING_FILES, f"{place}: {file.name} {_said(why)}") from None


def set_json(found: BackupSet) -> dict[str, object]:
    """The documented form; keys are only ever added."""
    manifest = found.manifest
    return {
        "machine": manifest.machine,
        "timestamp": manifest.timestamp,
        "power": manifest.power.value,
        "consistency": manifest.consistency,
        "size_bytes": manifest.size,
        "node": manifest.node,
        "directory": str(found.directory),
        "manifest_digest": found.digest,
    }


def _walk(root: Path, wanted: str | None) -> Iterator[BackupSet | NoSet]:
    try:
        # The root is the admin's word and may be a symbolic link; nothing below it may.
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as why:
        sentence = f"the backup root {root} cannot be read: {why.strerror}"
        raise Refused(ReturnValue.BACKUP_ROOT_MISSING, sentence) from None
    try:
        for vmtype in _folders(top):
            if vmtype in MACHINE_TYPES:
                yield from _below(top, root / vmtype, (None, wanted))
    finally:
        os.close(top)


def _below(parent: int, path: Path, wanted: tuple[str | None, ...]) -> Iterator[BackupSet | NoSet]:
    """Storage pools, then machines: `wanted` names, for each level that is left, the one directory or any."""
    try:
        with _opened(path.name, parent) as folder:
            for name in _folders(folder):
                if not wanted and is_timestamp(name):
                    yield _look(folder, path / name)
                elif wanted and wanted[0] in (None, name):
                    yield from _below(folder, path / name, wanted[1:])
    except OSError as why:
        yield NoSet(path, _said(why))


def _look(machine: int, path: Path) -> BackupSet | NoSet:
    try:
        with _opened(path.name, machine) as folder:
            return _manifest(folder, path)
    except (OSError, _Unusable) as why:
        return NoSet(path, _said(why))


def _manifest(folder: int, path: Path) -> BackupSet:
    name = f"{MANIFEST_NAME}.{path.name}"
    try:
        text = _read(folder, name, _LARGEST_MANIFEST)
        manifest = Manifest.model_validate_json(text)
        check_name(manifest.machine)
    except FileNotFoundError:
        raise _Unusable(f"holds no {name}: it was never finished, or is being made or removed") from None
    except ValidationError as why:
        first = why.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _Unusable(f"{name} is no manifest: {f'{place}: ' if place else ''}{first['msg']}") from None
    except Refused as why:
        raise _Unusable(why.sentence) from None
    except (OSError, _Unusable) as why:
        raise _Unusable(f"{name} {_said(why)}") from None
    if (manifest.machine, manifest.timestamp) != (path.parent.name, path.name):
        raise _Unusable(f"{name} is of another place: it says {manifest.machine} at {manifest.timestamp}")
    return BackupSet(path, manifest, _digest(text))


def _folders(descriptor: int) -> list[str]:
    with os.scandir(descriptor) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


@contextmanager
def _opened(path: Path | str, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(folder: int, name: str, most: int) -> bytes:
    descriptor = os.open(name, _FILE, dir_fd=folder)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - opened by descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Unusable("is no plain file")
        content = file.read(most + 1)
    if len(content) > most:
        raise _Unusable(f"is larger than {most >> 20} MiB")
    return content


def _digest(content: bytes) -> str:
    return f"blake3:{blake3(content).hexdigest()}"


def _said(why: Exception) -> str:
    return f"cannot be read: {why.strerror}" if isinstance(why, OSError) else str(why)
