"""What the processes of a host show: who runs a machine, and who could read a password."""

from pathlib import Path

from lab.cluster import Lab
from lab.processes import all_pids
from tests.faults.violation import Violation


def emulators(uuid: str) -> list[int]:
    """The processes that run a machine, whoever started them."""
    return [pid for pid in all_pids() if f"\0-uuid\0{uuid}\0".encode() in _read(pid, "cmdline")]


def secrets_seen(lab: Lab) -> list[Violation]:
    """Where a password of the lab can be read by somebody who should not: arguments, environments, logs, directory."""
    secrets = {name: each.password_file.read_bytes() for name, each in lab.directory.identities.items()}
    places = {f"the {what} of {pid}": _read(pid, what) for pid in all_pids() for what in ("cmdline", "environ")}
    places |= {str(path): path.read_bytes() for path in _logs(lab)}
    entries = lab.directory.search(lab.directory.suffix)
    places["the directory"] = repr(entries).encode()
    return [
        Violation(name, "I9", f"its password can be read in {place}")
        for name, secret in secrets.items()
        for place, content in places.items()
        if secret in content
    ]


def _logs(lab: Lab) -> list[Path]:
    folders = [lab.folder / "log", *(node.folder / "log" for node in lab.nodes.values())]
    return [path for folder in folders for path in folder.rglob("*.log") if path.is_file()]


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""
