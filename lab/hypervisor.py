"""One lab node: folders, and a private libvirt daemon in a mount namespace of its own. Used by the cluster.

Everything the daemon keeps lies below the node's folder; guests are ordinary QEMU processes under emulation.
"""

import contextlib
import signal
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import libvirt

from lab import filesystems, mounts, sockets
from lab.errors import LabError
from lab.processes import Process, identify, seeing, start, stop
from lab.waiting import until

_FOLDERS = ("backup", "ram", "state", "log", "serial", "etc", "lib", "cache", "run")
_BOUND = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run/libvirt",
}
# libvirt prints each error to standard error besides raising it.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


@dataclass(frozen=True)
class NodeOptions:
    """`ram_disks`: folders of the node that are RAM disks, and their MiB; `backup` lies elsewhere when given.

    `filesystem`: all folders of the node lie on a filesystem of their own, of this kind and with `filesystem_mib`; the
    file behind it is sparse. `store_mib`: images and retain directory alone lie on an ext4 of so many MiB, which a test
    can fill without taking the room from everything else.
    """

    ram_disks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({"ram": 512}))
    backup: Path | None = None
    filesystem: str | None = None
    filesystem_mib: int = 4096
    store_mib: int = 0


class Node:
    """One node: its folders, its daemon, the guests on it."""

    def __init__(self, name: str, folder: Path, options: NodeOptions | None = None) -> None:
        self.name = name
        self.folder = folder
        self.options = options or NodeOptions()
        self.pool = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"pool.{name}"))
        self.storage_pool = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"storage.{name}"))
        self.sockets = sockets.socket_folder(folder)
        self.reaper: Process | None = None
        self._connection: Any = None

    @property
    def store(self) -> Path:
        """Where images and retain directory lie."""
        return self.folder / "store" if self.options.store_mib else self.folder

    @property
    def images(self) -> Path:
        """Image root of the node."""
        return self.store / "images"

    @property
    def retain(self) -> Path:
        """Retain directory, on the file system of the images."""
        return self.store / "retain"

    @property
    def backup(self) -> Path:
        """Backup directory."""
        return self.options.backup or self.folder / "backup"

    @property
    def ram(self) -> Path:
        """RAM disk for machine states."""
        return self.folder / "ram"

    @property
    def state(self) -> Path:
        """The agent's journal."""
        return self.folder / "state"

    @property
    def libvirt_state(self) -> Path:
        """What the daemon sees as /var/lib/libvirt."""
        return self.folder / "lib"

    @property
    def uri(self) -> str:
        """The libvirt URI of the node, from anywhere on this machine."""
        return f"qemu+unix:///system?socket={self.sockets}/libvirt-sock"

    @property
    def libvirtd(self) -> Process | None:
        """The daemon itself, where it runs."""
        try:
            pid = int((self.folder / "libvirtd.pid").read_text())
        except (OSError, ValueError):
            return None
        found = identify("libvirtd", pid)
        ours = found is not None and any(found == process for process in self.processes("libvirtd"))
        return found if ours else None

    def create(self) -> None:
        """Make the folders, mount the RAM disks, write the daemon's configuration."""
        self.folder.mkdir(parents=True)
        if self.options.filesystem:
            # Before the daemon's namespace is made: it sees later mounts only where they reach it.
            filesystems.mount_in_file(self.folder, self.options.filesystem_mib, self.options.filesystem)
        if self.options.store_mib:
            self.store.mkdir()
            filesystems.mount_in_file(self.store, self.options.store_mib, "ext4")
        for folder in (self.images, self.retain, *(self.folder / name for name in (*_FOLDERS, "lib/qemu/nvram"))):
            folder.mkdir(parents=True)
        self.backup.mkdir(parents=True, exist_ok=True)
        self.sockets.mkdir(mode=0o700)
        for name, mib in self.options.ram_disks.items():
            mounts.mount_ram(self.folder / name, mib)
        (self.folder / "etc/libvirtd.conf").write_text(self._daemon_settings())
        (self.folder / "etc/qemu.conf").write_text(_QEMU_SETTINGS)

    def start(self) -> Process:
        """Start the namespace and the daemon; `wait_ready` says when it answers."""
        binds = [part for name, target in _BOUND.items() for part in (str(self.folder / name), target)]
        reaper = Path(__file__).with_name("reaper.py")
        daemon = ["/usr/sbin/libvirtd", "--pid-file", str(self.folder / "libvirtd.pid")]
        # A host name of its own, too: libvirt migrates no machine to the host it is on.
        unshare: list[str | Path] = ["unshare", "-m", "-u", "--propagation", "slave", sys.executable, reaper, self.name]
        self.reaper = start(f"reaper {self.name}", [*unshare, *binds, "--", *daemon], self.folder / "log/reaper.log")
        return self.reaper

    def wait_ready(self, limit: float = 30) -> None:
        """Return when the daemon answers."""
        until(f"libvirtd of {self.name} to answer, see {self.folder}/log", self._answers, limit)

    def connection(self) -> Any:
        """An open libvirt connection of our own, opened again where the daemon was restarted or has let go of it."""
        if self._connection is None or not _is_open(self._connection):
            self._connection = libvirt.open(self.uri)
        return self._connection

    def domain(self, machine: str) -> Any:
        """The libvirt domain of a machine."""
        return self.connection().lookupByName(machine)

    def processes(self, name: str | None = None) -> list[Process]:
        """Everything that runs in the node's namespace (libvirtd, qemu-system-x86…, swtpm), or what has this name."""
        found = seeing(self.folder / "lib", "/var/lib/libvirt")
        return [process for process in found if name is None or process.name.startswith(name)]

    def qemu(self, machine: str) -> Process | None:
        """The QEMU process of a machine, where it runs."""
        for process in self.processes("qemu-system"):
            try:
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended in this moment
            if any(word.startswith(b"guest=" + machine.encode() + b",") for word in words):
                return process
        return None

    def kill_libvirtd(self) -> None:
        """End the daemon as a crash would; guests go on."""
        if (daemon := self.libvirtd) is not None:
            stop([daemon], grace=0)

    def restart_libvirtd(self) -> None:
        """Start the daemon again after `kill_libvirtd`; returns when it answers."""
        if self.reaper is None or not self.reaper.alive:
            raise LabError(f"the namespace of {self.name} is gone; nothing can be started in it")
        self.reaper.kill(signal.SIGUSR1)
        self.wait_ready()

    def close(self) -> None:
        """Let go of our own connection."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def _answers(self) -> bool:
        if self.reaper is not None and not self.reaper.alive:
            said = (self.folder / "log/reaper.log").read_text().strip()[-600:]
            raise LabError(f"the libvirt daemon of {self.name} did not start: {said}")
        try:
            return bool(self.connection().getLibVersion())
        except libvirt.libvirtError:
            return False

    def _daemon_settings(self) -> str:
        return (
            f'unix_sock_dir = "{self.sockets}"\nunix_sock_group = "root"\nunix_sock_rw_perms = "0770"\n'
            'auth_unix_ro = "none"\nauth_unix_rw = "none"\nlisten_tls = 0\nlisten_tcp = 0\nmax_client_requests = 20\n'
            f'host_uuid = "{uuid.uuid4()}"\nlog_outputs = "2:file:{self.folder}/log/libvirtd.log"\n'
        )


# Guests and swtpm run as root: no account has to exist, and any folder will do. No virtlogd, no cgroups, no namespaces.
_QEMU_SETTINGS = """\
user = "root"
group = "root"
swtpm_user = "root"
swtpm_group = "root"
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
"""


def _is_open(connection: Any) -> bool:
    """Asked of the daemon: it drops who does not answer it, as this process where no event loop runs any more."""
    try:
        return bool(connection.isAlive() and connection.getLibVersion())
    except libvirt.libvirtError:
        return False
