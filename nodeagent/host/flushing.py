"""Has QEMU write out what it still holds back of an image. Used by `hypervisor`.

A pull takes the backing file's name out of the image while the tables that say where the data lies are still in QEMU's
memory; until the guest flushes, which one that idles or is paused never does, a QEMU that dies leaves zeros for data.
libvirt has no verb for a flush but to stop the machine, so QEMU's own monitor is asked.
"""

import json
from typing import Any

import libvirt_qemu

from nodeagent.host.errors import HostFailure


def flush(domain: Any, path: str) -> None:
    """Return when everything QEMU knows of an open image is on the disk."""
    nodes = _asked(domain, "query-named-block-nodes", {"flat": True})
    names = [node["node-name"] for node in nodes if (node["drv"], node["file"]) == ("qcow2", path)]
    if not names:
        raise HostFailure(f"QEMU does not have {path} open")
    for name in names:
        if said := _asked(domain, "human-monitor-command", {"command-line": f'qemu-io {name} "flush"'}).strip():
            raise HostFailure(f"QEMU could not write out {path}: {said}")


def _asked(domain: Any, command: str, arguments: dict[str, Any]) -> Any:
    question = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, question, 0))
    if "error" in answer:
        raise HostFailure(f"QEMU refuses {command}: {answer['error'].get('desc', answer['error'])}")
    return answer["return"]
