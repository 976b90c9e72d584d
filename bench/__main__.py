"""The benchmarks' command line: `python -m bench [--quick] [--only ROW…] [--json FILE]`, called by `make bench`."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import libvirt

from bench import report
from bench.figures import Figure
from bench.latencies import Latency
from bench.rows import (
    added_time,
    bytes_written,
    clone,
    gap,
    group_spread,
    hand_over,
    merge,
    retain_copy,
    retain_rename,
    sets,
    write_latency,
)
from bench.session import Session
from lab.errors import LabError
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.methods import Method

_NEEDED, _NEEDED_QUICK = 16 << 30, 4 << 30

ROWS: dict[str, Callable[[Session], Iterator[Figure] | Iterator[Latency]]] = {
    "gap": gap.measure,
    "gap-live": partial(gap.measure, method=Method.LIVE),
    "gap-disk": partial(gap.measure, method=Method.DISK),
    "merge": merge.measure,
    "retain-copy": retain_copy.measure,
    "retain-rename": retain_rename.measure,
    "bytes-written": bytes_written.measure,
    "bytes-written-live": bytes_written.measure_live,
    "bytes-written-disk": bytes_written.measure_disk,
    "bytes-written-clones": bytes_written.measure_clones,
    "clone": clone.measure,
    "hand-over": hand_over.measure,
    "group-spread": group_spread.measure,
    "added-time": added_time.measure,
    "write-latency": write_latency.measure,
    "sets": sets.measure,
}


def main() -> int:
    """Parse, measure, print; 0 measured, whatever the figures say; 1 not; 2 usage."""
    arguments = _parser().parse_args()
    if os.geteuid() != 0:
        print("bench: the figures are measured in a lab, which needs root", file=sys.stderr)
        return 1
    free, wanted = shutil.disk_usage(arguments.dir).free, _NEEDED_QUICK if arguments.quick else _NEEDED
    if free < wanted:
        print(
            f"bench: {arguments.dir} has {free >> 30} GiB free, {wanted >> 30} GiB are needed; try --dir DIR",
            file=sys.stderr,
        )
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    figures: list[Figure | Latency] = []
    try:
        return _measure(arguments, figures)
    except KeyboardInterrupt:
        _say("interrupted; what was measured until then:")
        return 130
    finally:
        _tell(arguments, figures)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End in good order: labs and mounts are taken down, and an impatient second Ctrl-C does not stop that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _measure(arguments: argparse.Namespace, figures: list[Figure | Latency]) -> int:
    """Every row wanted; one that cannot be measured does not keep the others from it."""
    missing = 0
    for name in arguments.only or ROWS:
        # Images and retain must lie on a disk: /tmp may be memory.
        with tempfile.TemporaryDirectory(prefix="vmkeep-bench-", dir=arguments.dir) as folder:
            session = Session(Path(folder), _runs(arguments), arguments.quick, _say)
            try:
                figures.extend(ROWS[name](session))
            except (LabError, Refused, TryLater, libvirt.libvirtError, OSError) as why:
                missing += 1
                _say(f"{name}: could not be measured: {why}")
    return 1 if missing else 0


def _tell(arguments: argparse.Namespace, figures: list[Figure | Latency]) -> None:
    if figures:
        report.show(figures, quick=arguments.quick)
    if arguments.json:
        arguments.json.write_text(report.to_json(figures, quick=arguments.quick, runs=_runs(arguments)))


def _runs(arguments: argparse.Namespace) -> int:
    return arguments.runs or (3 if arguments.quick else 5)


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 or more is needed")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="vmkeep beside raw tools doing the same work.")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--runs", type=_positive, metavar="N", help="how often each is measured; 5, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes, few runs: whether it works, not how well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a folder on a disk, with 16 GiB free")
    return parser


if __name__ == "__main__":
    sys.exit(main())
