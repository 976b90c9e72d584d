"""The guest agent of a lab machine, asked through libvirt, and what can befall it inside the guest. Used by tests.

Nothing can be run in a guest whose filesystems are frozen: what is to happen then is prepared before, and waits there.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import libvirt
import libvirt_qemu

from lab.errors import LabError
from lab.machines import Machine
from lab.waiting import until

_SHELL = "/bin/busybox"
_ANSWER_SECONDS = 10
_FROZEN = "/run/qga.state.isfrozen"
_PID = "$(/bin/busybox cat /run/qemu-ga.pid)"


def ask(
    machine: Machine, command: str, arguments: Mapping[str, object] | None = None, limit: int = _ANSWER_SECONDS
) -> Any:
    """The agent's answer to one of its commands; libvirtError where it refuses or is silent for `limit` seconds."""
    asked = json.dumps({"execute": command, "arguments": dict(arguments or {})})
    answer = libvirt_qemu.qemuAgentCommand(machine.node.domain(machine.name), asked, limit, 0)
    return json.loads(answer)["return"]


def wait_ready(machine: Machine, limit: float = 120) -> None:
    """Return when the agent answers."""
    until(f"the guest agent of {machine.name} to answer", lambda: _answers(machine), limit)


def run(machine: Machine, script: str, limit: float = 30) -> str:
    """Run a shell script in the guest to its end; what it printed. LabError where it fails."""
    pid = start(machine, script)
    done: dict[str, Any] = until(f"the end of a script in {machine.name}: {script}", lambda: _end(machine, pid), limit)
    said = base64.b64decode(done.get("out-data", "")).decode(errors="replace")
    if done.get("exitcode") != 0:
        raise LabError(f"a script in {machine.name} ended with {done}: {script}: {said}")
    return said


def start(machine: Machine, script: str) -> int:
    """Begin a shell script in the guest; its process there. It goes on when the agent dies or freezes."""
    arguments = {"path": _SHELL, "arg": ["sh", "-c", f"exec 2>&1\n{script}"], "capture-output": True}
    return int(ask(machine, "guest-exec", arguments)["pid"])


def refuse(machine: Machine, *commands: str) -> None:
    """Have the agent refuse some commands from now on, `guest-fsfreeze-freeze` for instance; none: refuse nothing."""
    options = f"--block-rpcs={','.join(commands)}" if commands else ""
    before = run(machine, f"echo '{options}' >/run/qemu-ga.options; echo {_PID}")
    start(machine, f"/bin/busybox usleep 200000; /bin/busybox kill {_PID}")
    until(f"another agent in {machine.name}", lambda: _process(machine) not in (None, before), 30)


def when_frozen(machine: Machine, signal: str, after: float = 0.3) -> None:
    """Have the agent get a signal `after` seconds after it next begins to freeze: KILL, or STOP and never CONT.

    A killed one is started again, knows that its filesystems are frozen, and can be asked to thaw them.
    """
    waiting = f"while [ ! -e {_FROZEN} ]; do /bin/busybox usleep 1000; done; /bin/busybox usleep {int(after * 1e6)}"
    start(machine, f"agent={_PID}; {waiting}; /bin/busybox kill -{signal} $agent")


def is_frozen(machine: Machine) -> bool:
    """Whether the agent holds the guest's filesystems frozen."""
    return bool(ask(machine, "guest-fsfreeze-status") == "frozen")


def _answers(machine: Machine) -> bool:
    try:
        ask(machine, "guest-ping", limit=2)
    except libvirt.libvirtError:
        return False
    return True


def _process(machine: Machine) -> str | None:
    """The agent's process in the guest; None while one ends and another begins."""
    try:
        return run(machine, f"echo {_PID}", limit=5)
    except (libvirt.libvirtError, LabError):
        return None


def _end(machine: Machine, pid: int) -> dict[str, Any] | None:
    status: dict[str, Any] = ask(machine, "guest-exec-status", {"pid": pid})
    return status if status["exited"] else None
