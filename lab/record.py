"""What a lab has taken from its machine, on disk from the first moment, so that `down` can give it back at any time."""

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lab import mounts, sockets
from lab.errors import LabError
from lab.processes import Process, descendants, seeing, stop
from lab.waiting import until

_NAME = ".lab-record.json"


@dataclass
class Record:
    """Processes and folders of the lab in `folder`; `made_folder`: the folder itself is the lab's."""

    folder: Path
    made_folder: bool = False
    processes: dict[str, Process] = field(default_factory=dict)
    nodes: list[Path] = field(default_factory=list)
    created: list[Path] = field(default_factory=list)

    def note_process(self, process: Process) -> None:
        """Remember a process; one of the same name takes the place of the one before."""
        self.processes[process.name] = process
        self.write()

    def forget_process(self, name: str) -> None:
        """The process of this name has been ended."""
        self.processes.pop(name, None)
        self.write()

    def write(self) -> None:
        """Put the record on disk in one step."""
        content = {
            "made_folder": self.made_folder,
            "processes": [[process.name, process.pid, process.started] for process in self.processes.values()],
            "nodes": [str(path) for path in self.nodes],
            "created": [str(path) for path in self.created],
        }
        temporary = self.folder / f"{_NAME}.new"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.folder / _NAME)

    def remove(self) -> None:
        """Forget the lab: the last thing that `down` does."""
        (self.folder / _NAME).unlink(missing_ok=True)


def read(folder: Path) -> Record | None:
    """The record of the lab in a folder, or None where there is no lab."""
    try:
        content = json.loads((folder / _NAME).read_text())
    except FileNotFoundError:
        return None
    processes = {name: Process(name, pid, started) for name, pid, started in content["processes"]}
    nodes, created = ([Path(path) for path in content[key]] for key in ("nodes", "created"))
    return Record(folder, content["made_folder"], processes, nodes, created)


def end_processes(record: Record) -> None:
    """End everything the lab runs: agents first, then what lives in the nodes' namespaces, then slapd."""
    recorded = [process for process in record.processes.values() if process.alive]
    parts = [process for process in recorded if process.name != "slapd" and not process.name.startswith("reaper ")]
    helpers = [child for part in parts for child in descendants(part.pid)]
    stop(parts)
    stop(helpers, grace=0)
    # Again and again: a daemon may start a guest while it is being ended. The reaper goes last: nobody stays a zombie.
    while inside := [process for process in _inside(record.nodes) if process not in recorded]:
        stop(inside, grace=0)
        with contextlib.suppress(LabError):
            until("the reaper", lambda: not any(process.exists for process in inside), 2)
    stop(recorded, grace=0)


def give_back(record: Record) -> list[Path]:
    """Unmount and remove all that is the lab's; answers what else lies in the folder and was left."""
    mounts.unmount_below(record.folder)
    for folder in [*record.nodes, record.folder / "directory"]:
        sockets.clear(folder)
    for path in record.created:
        _remove(path)
    record.remove()
    rest = sorted(record.folder.iterdir())
    if record.made_folder and not rest:
        record.folder.rmdir()
    return rest


def _inside(nodes: list[Path]) -> list[Process]:
    return [process for node in nodes for process in seeing(node / "lib", "/var/lib/libvirt")]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
