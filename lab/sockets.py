"""Where a lab's Unix sockets lie: beside their server, or in a short folder below /tmp where the path would not fit."""

import hashlib
import shutil
from pathlib import Path

_LONGEST = 107  # sun_path, without its final NUL
_LONGEST_NAME = len("/libvirt-admin-sock")
_SHORT = Path("/tmp")


def socket_folder(folder: Path) -> Path:
    """The folder for the sockets of a server in `folder`; always the same answer, so it can be cleared away."""
    beside = folder / "sock"
    if len(str(beside)) + _LONGEST_NAME <= _LONGEST:
        return beside
    digest = hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()
    return _SHORT / f"vmkeep-lab-{digest}"


def clear(folder: Path) -> None:
    """Remove the socket folder of a server."""
    shutil.rmtree(socket_folder(folder), ignore_errors=True)
