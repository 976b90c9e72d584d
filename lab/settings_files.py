"""Writes the settings files of the lab's agents, controller and console: the same form an admin writes."""

import json
from pathlib import Path

from lab.hypervisor import Node
from lab.slapd import Identity, Slapd


def write_agent_settings(node: Node, slapd: Slapd) -> Path:
    """Settings of one node's agent."""
    path = node.folder / "nodeagent.toml"
    lines = [
        _line("node", node.name),
        _line("libvirt_uri", node.uri),
        _line("image_roots", [str(node.images)]),
        _line("allowed_roots", sorted({str(node.folder), str(node.backup)})),
        _line("state_directory", str(node.state)),
        _line("libvirt_state_directory", str(node.libvirt_state)),
        _line("readable_roots", [str(_boot_folder(node)), "/usr/share/OVMF"]),
        _line("writable_roots", [str(node.folder / "serial"), "/var/log/libvirt", "/var/lib/libvirt/qemu/channel"]),
        _directory(slapd, slapd.identities[node.name]),
        "[logs]",
        _line("form", "json"),
    ]
    return _write(path, lines)


def _boot_folder(node: Node) -> Path:
    """Where the cluster keeps what Linux guests boot from: beside the folder of all nodes."""
    return node.folder.parent.parent / "boot"


def write_controller_settings(folder: Path, slapd: Slapd) -> Path:
    """Settings of the controller; where it is killed, the next must not wait for long."""
    lines = [_line("timezone", "UTC"), _line("lease_seconds", 5), _directory(slapd, slapd.identities["controller"])]
    return _write(folder / "controller.toml", lines)


def write_console_settings(folder: Path, slapd: Slapd) -> Path:
    """Settings of the admin's command line."""
    return _write(folder / "vmkeep.toml", [_directory(slapd, slapd.identities["admin"])])


def _directory(slapd: Slapd, identity: Identity) -> str:
    return "\n".join(
        [
            "\n[directory]",
            _line("uri", slapd.uri),
            _line("suffix", slapd.suffix),
            _line("bind_dn", identity.dn),
            _line("password_file", str(identity.password_file)),
            "",
        ]
    )


def _line(key: str, value: object) -> str:
    # JSON strings and lists of strings are TOML too.
    return f"{key} = {json.dumps(value)}"


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([*lines, ""]))
    return path
