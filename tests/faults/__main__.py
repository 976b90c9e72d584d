"""`make faults`: random sequences of work and faults for as long as asked, told line by line, and played again by seed.

Run as `python -m tests.faults --minutes 60 --seed 7`. The work, the faults and their moments come of the seed.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.cluster import Lab, LabOptions
from lab.machines import MachineSpec
from tests.faults.belt import Belt
from tests.faults.stage import stage
from tests.faults.violation import Violation
from tests.faults.wandering import Wandering

REGRESSIONS = Path(__file__).with_name("regressions.txt")
LOGS = Path(__file__).parents[2] / ".cache/faults"
MACHINES = 4
BUDGETS = "[budgets.snapshots]\noverall = 3\n[budgets.merges]\noverall = 2\n[budgets.retains]\nper_root = 2\n"
Start = Callable[[LabOptions], Lab]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where nothing was violated, 1 where something was; the seed is kept then."""
    chosen = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the lab is taken down
    print(f"seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vmkeep-faults-", dir="/tmp") as folder:
        started, found = _started_in(Path(folder)), []
        deadline, number = time.monotonic() + chosen.minutes * 60, 0
        chance = random.Random(chosen.seed)
        with wandering_on(Path(folder), started) as wandering:
            while not found and (number < chosen.cycles if chosen.cycles else time.monotonic() < deadline):
                number += 1
                found = wandering.cycle(number, chance)
            if found:
                _keep_logs(wandering.belt, f"{chosen.seed}-{number}")
    if found:
        _keep(found, chosen.seed, number)
    print(_summary(number, wandering.struck, found), flush=True)
    return 1 if found else 0


def play(folder: Path, seed: int, cycles: int, start: Start) -> list[Violation]:
    """The first cycles of a seed, in a folder of their own; what was violated."""
    chance = random.Random(seed)
    with wandering_on(folder, start) as wandering:
        return next((found for number in range(cycles) if (found := wandering.cycle(number + 1, chance))), [])


@contextmanager
def wandering_on(folder: Path, start: Start) -> Iterator[Wandering]:
    """Machines, an agent and a controller to wander with."""
    with stage(folder, start) as belt:
        belt.fill(MachineSpec(period_ms=250), MACHINES)
        with belt.controller_settings.open("a") as settings:
            settings.write(BUDGETS)
        belt.start_agent()
        belt.start_controller()
        yield Wandering(belt, lambda line: print(line, flush=True))


def _started_in(folder: Path) -> Start:
    def start(options: LabOptions) -> Lab:
        lab = Lab(folder / "lab", options)
        lab.up()
        return lab

    return start


def _keep_logs(belt: Belt, name: str) -> None:
    """What was said and printed, for who looks for the cause; the lab goes."""
    kept = LOGS / name
    shutil.rmtree(kept, ignore_errors=True)
    for path in (belt.lab.folder / "log", belt.folder, *(node.folder for node in belt.lab.nodes.values())):
        for each in (each for each in path.rglob("*") if each.is_file() and each.suffix in (".log", ".journal")):
            target = kept / path.name / each.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(each, target)
    print(f"  logs are in {kept}")


def _keep(found: list[Violation], seed: int, number: int) -> None:
    for each in found:
        print(f"  {each}")
    print(f"play it again: make faults SEED={seed} CYCLES={number}; kept in {REGRESSIONS}")
    line, known = f"{seed} {number}\n", REGRESSIONS.read_text()
    if line not in known:
        REGRESSIONS.write_text(known + line)


def _summary(cycles: int, struck: Counter[str], found: list[Violation]) -> str:
    lines = [f"{cycles} cycles, {sum(struck.values())} faults, {len(found)} violations"]
    lines += [f"  {number:5} × {name}" for name, number in struck.most_common()]
    violated = Counter(each.invariant for each in found)
    return "\n".join([*lines, *(f"  {name} violated {number} times" for name, number in violated.items())])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Random faults, for as long as asked.")
    parser.add_argument("--minutes", type=float, default=10, help="how long; the last cycle is played to its end")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="what everything is chosen by")
    parser.add_argument("--cycles", type=int, default=0, help="play so many, however long they take")
    return parser


if __name__ == "__main__":
    sys.exit(main())
