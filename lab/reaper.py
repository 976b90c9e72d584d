"""First process of a lab node: binds the node's folders over libvirt's, starts libvirtd, reaps every orphan at once.

Run by lab.hypervisor in namespaces of its own: `reaper.py HOSTNAME SOURCE TARGET … -- libvirtd …`. Where PID 1
reaps late, a dead QEMU stays a zombie for seconds and libvirt takes it for alive; a child subreaper ends that.
USR1 starts libvirtd again (after a test killed it). It ends with TERM; its guests are ended by the lab.
"""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_MS_BIND = 4096
_SIGNALS = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM}


def main() -> None:
    """Bind, start, reap until TERM."""
    split = sys.argv.index("--")
    pairs, command = sys.argv[2:split], sys.argv[split + 1 :]
    socket.sethostname(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for source, target in zip(pairs[::2], pairs[1::2], strict=True):
        _make_target(libc, Path(target))
        _mount(libc, source, target, None, _MS_BIND)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _spawn(command)
    while (number := signal.sigwait(_SIGNALS)) != signal.SIGTERM:
        if number == signal.SIGUSR1:
            _spawn(command)
        _reap()


def _make_target(libc: ctypes.CDLL, target: Path) -> None:
    # A folder made below the real /run would be left behind on the host: cover /run first.
    if not target.exists() and target.is_relative_to("/run"):
        _mount(libc, "tmpfs", "/run", "tmpfs", 0)
    target.mkdir(parents=True, exist_ok=True)


def _mount(libc: ctypes.CDLL, source: str, target: str, kind: str | None, flags: int) -> None:
    kind_bytes = None if kind is None else kind.encode()
    if libc.mount(os.fsencode(source), os.fsencode(target), kind_bytes, flags, None) != 0:
        sys.exit(f"cannot mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def _spawn(command: list[str]) -> None:
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.setsid()
        os.execv(command[0], command)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
