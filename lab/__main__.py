"""The lab's command line: `python -m lab up | down | status | demo`."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from lab import cluster, record
from lab.errors import LabError
from lab.machines import KINDS, MachineSpec


def main() -> int:
    """Parse, call, print; 0 done, 1 not, 2 usage."""
    arguments = _parser().parse_args()
    # A terminated `up` cleans up after itself as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return int(arguments.call(arguments))
    except LabError as why:
        print(f"lab: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; what had been started is ended again", file=sys.stderr)
        return 130


def _up(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    spec = MachineSpec(
        kind=arguments.kind,
        disks=arguments.disks,
        disk_mib=arguments.disk_mib,
        memory_mib=arguments.memory,
        tpm=arguments.tpm,
        period_ms=10,
    )
    options = cluster.LabOptions(
        nodes=arguments.nodes,
        machines=arguments.machines,
        machine=spec,
        agents=arguments.agents,
        controller=arguments.controller,
    )
    lab = cluster.Lab(arguments.dir, options)
    lab.up()
    print(f"{arguments.machines} machines on {arguments.nodes} nodes up in {time.monotonic() - began:.1f} s")
    print(lab.folder / "lab.json")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    if not cluster.take_down(arguments.dir):
        print(f"there is no lab in {arguments.dir}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    found = record.read(arguments.dir.resolve())
    description = arguments.dir / "lab.json"
    if found is None or not description.exists():
        print(
            f"there is no lab in {arguments.dir}" if found is None else f"the lab in {arguments.dir} is not up",
            file=sys.stderr,
        )
        return 1
    rows = cluster.status(json.loads(description.read_text()))
    for row in rows:
        print("  ".join(row))
    return 0


def _demo(_arguments: argparse.Namespace) -> int:
    from lab import demo

    return demo.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description="A whole cluster on one machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start a lab; returns when every machine is up")
    _add_directory(up)
    up.add_argument("--nodes", type=int, default=1, metavar="N", help="private libvirt daemons")
    up.add_argument("--machines", type=int, default=1, metavar="M", help="guests, spread over the nodes")
    up.add_argument("--disks", type=int, default=1, metavar="K", help="disks of each guest")
    up.add_argument("--disk-mib", type=int, default=64, metavar="MIB", help="size of each disk")
    up.add_argument("--memory", type=int, default=0, metavar="MIB", help="memory of each guest; default by kind")
    up.add_argument("--kind", choices=list(KINDS), default="linux", help="bios and uefi: firmware only; linux: counts")
    up.add_argument("--tpm", action="store_true", help="guests have a virtual TPM")
    up.add_argument("--agents", action="store_true", help="start a vmkeep-nodeagent for each node")
    up.add_argument("--controller", action="store_true", help="start vmkeep-controller")
    up.set_defaults(call=_up)
    for name, call, text in (
        ("down", _down, "end a lab, however much is left of it"),
        ("status", _status, "what runs"),
    ):
        command = commands.add_parser(name, help=text)
        _add_directory(command)
        command.set_defaults(call=call)
    commands.add_parser("demo", help="back up two running machines, and prove it").set_defaults(call=_demo)
    return parser


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, required=True, help="the lab's folder")


if __name__ == "__main__":
    sys.exit(main())
