"""Builds the kernel and initramfs of the lab's Linux guests, once per content; called by the cluster.

Debian's cloud kernel, busybox, the few modules that virtio disks need, and the ticker, statically linked. A guest with
an agent gets qemu-ga and its libraries too, in an initramfs of its own: the others boot no slower for it.
"""

import gzip
import hashlib
import lzma
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import programs
from lab.errors import LabError

_SOURCES = Path(__file__).parent / "guest"
_MODULES = (
    "virtio/virtio",
    "virtio/virtio_ring",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
)
_AGENT_MODULES = ("char/virtio_console",)
_AGENT = "/usr/sbin/qemu-ga"


@dataclass(frozen=True)
class GuestImage:
    """What a Linux guest boots from."""

    kernel: Path
    initramfs: Path


def build(*, agent: bool = False) -> GuestImage:
    """The guest's kernel and initramfs, from the cache where it has them."""
    kernel = _newest_kernel()
    names = _MODULES + (_AGENT_MODULES if agent else ())
    files = {"init": (_SOURCES / "init").read_bytes(), "bin/busybox": Path(programs.locate("busybox")).read_bytes()}
    files |= {f"modules/{name.split('/')[1]}.ko": _module(kernel, name) for name in names}
    files |= _agent_files() if agent else {}
    digest = hashlib.blake2b((_SOURCES / "ticker.c").read_bytes(), digest_size=12)
    for name, content in files.items():
        digest.update(name.encode() + content)
    initramfs = _cache() / f"guest-{digest.hexdigest()}.initramfs"
    if not initramfs.exists():
        _write_whole(initramfs, _archive({**files, "bin/ticker": _compiled_ticker()}))
    return GuestImage(kernel, initramfs)


def _agent_files() -> dict[str, bytes]:
    """qemu-ga, its libraries and their loader, each at its own place."""
    if not Path(_AGENT).exists():
        raise LabError(f"{_AGENT} does not exist; lab/packages.sh installs qemu-guest-agent")
    paths = re.findall(r"(/\S+) \(0x", programs.run(["ldd", _AGENT]))
    return {path.lstrip("/"): Path(path).read_bytes() for path in (_AGENT, *paths)}


def _archive(files: dict[str, bytes]) -> bytes:
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [_entry(folder, b"", 0o040755) for folder in sorted({*folders, "dev", "proc"})]
    entries += [_entry(name, content, 0o100755) for name, content in files.items()]
    # Unpacking is emulated, so the least compression that saves reading wins.
    return gzip.compress(b"".join([*entries, _entry("TRAILER!!!", b"", 0)]), compresslevel=1, mtime=0)


def _entry(name: str, content: bytes, mode: int) -> bytes:
    """One member of a cpio archive of the form "newc"."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _compiled_ticker() -> bytes:
    with tempfile.TemporaryDirectory(prefix="vmkeep-lab-") as folder:
        out = Path(folder) / "ticker"
        programs.run(["gcc", "-O2", "-static", "-s", "-Wall", "-o", out, _SOURCES / "ticker.c"], limit=120)
        return out.read_bytes()


def _newest_kernel() -> Path:
    found = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabError("no kernel /boot/vmlinuz-*-cloud-amd64; lab/packages.sh installs linux-image-cloud-amd64")
    return found[-1]


def _module(kernel: Path, name: str) -> bytes:
    release = kernel.name.removeprefix("vmlinuz-")
    path = Path("/lib/modules") / release / "kernel/drivers" / f"{name}.ko"
    if path.exists():
        return path.read_bytes()
    packed = path.with_suffix(".ko.xz")
    if packed.exists():
        return lzma.decompress(packed.read_bytes())
    raise LabError(f"the kernel {release} has no module {path}")


def _cache() -> Path:
    """`.cache` of a checkout, else the user's cache folder."""
    repository = Path(__file__).parent.parent
    if (repository / "pyproject.toml").exists() and os.access(repository, os.W_OK):
        folder = repository / ".cache"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmkeep-lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_whole(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
    Path(name).replace(path)
