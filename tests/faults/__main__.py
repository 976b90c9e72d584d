"""`make faults`: random sequences of work and faults for as long as asked, told line by line, and played again by seed.

Run as `python -m tests.faults --minutes 60 --seed 7`. The work, the faults and their moments come of the seed.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lab.cluster import Lab, LabOptions
from lab.machines import MachineSpec
from tests.faults.invariants import Violation
from tests.faults.stage import stage
from tests.faults.wandering import Wandering

REGRESSIONS = Path(__file__).with_name("regressions.txt")
MACHINES = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where nothing was violated, 1 where something was; the seed is kept then."""
    chosen = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vmkeep-faults-", dir="/tmp") as folder:
        return run(Path(folder), chosen.seed, chosen.minutes, chosen.cycles)


def run(folder: Path, seed: int, minutes: float, cycles: int) -> int:
    """One run from its seed: so many cycles, or as many as fit."""
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    tally: Counter[str] = Counter()

    def start(options: LabOptions) -> Lab:
        lab = Lab(folder / "lab", options)
        lab.up()
        return lab

    with stage(folder, start) as belt:
        belt.fill(MachineSpec(period_ms=100), MACHINES)
        belt.start_agent()
        wandering = Wandering(belt, lambda line: print(line, flush=True))
        deadline, number = time.monotonic() + minutes * 60, 0
        while number < cycles if cycles else time.monotonic() < deadline:
            number += 1
            found = wandering.cycle(number, chance)
            tally.update(each.invariant for each in found)
            if found:
                _tell(found, seed, number)
                break
    print(_summary(number, wandering.struck, tally), flush=True)
    return 1 if tally else 0


def _tell(found: list[Violation], seed: int, number: int) -> None:
    for each in found:
        print(f"  {each}")
    print(f"play it again: make faults SEED={seed} CYCLES={number}; kept in {REGRESSIONS}")
    line = f"{seed} {number}\n"
    known = REGRESSIONS.read_text() if REGRESSIONS.exists() else ""
    if line not in known:
        REGRESSIONS.write_text(known + line)


def _summary(cycles: int, struck: Counter[str], tally: Counter[str]) -> str:
    lines = [f"{cycles} cycles, {sum(struck.values())} faults, {sum(tally.values())} violations"]
    lines += [f"  {number:5} × {name}" for name, number in struck.most_common()]
    lines += [f"  {name} violated {number} times" for name, number in tally.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Random faults, for as long as asked.")
    parser.add_argument("--minutes", type=float, default=10, help="how long; the last cycle is played to its end")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="what everything is chosen by")
    parser.add_argument("--cycles", type=int, default=0, help="play so many, however long they take")
    return parser


if __name__ == "__main__":
    sys.exit(main())
