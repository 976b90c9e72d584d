"""`make planted-bugs`: plants each bug of the catalogue in a copy and demands that its tests turn red.

The same tests are run first without a bug and have to be green. Ends with 1 where a bug survives.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS
from tests.planted.planting import NoAnswer, check, copied, plant, run

_SECONDS = 300.0  # for the tests of one bug
_ALL_SECONDS = 1800.0  # for all of them together, without a bug
_MOST_SAID = 150
_LABS = threading.Lock()  # each starts a cluster of its own, and the machine is small


@dataclass(frozen=True)
class Verdict:
    """What became of one bug: what a test said, tests that did not notice it (`left`), or a run without an answer."""

    bug: Bug
    seconds: float
    said: str = ""
    left: tuple[str, ...] = ()
    why: str = ""

    @property
    def is_caught(self) -> bool:
        """Whether every one of its tests noticed it."""
        return not self.left and not self.why


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    wanted = _wanted(arguments)
    began = time.monotonic()
    try:
        for bug in wanted.bugs:
            check(bug)
        _require_green(wanted.bugs)
    except NoAnswer as why:
        print(f"NO ANSWER  {why}")
        return 1
    with ThreadPoolExecutor(max_workers=wanted.workers) as threads:
        verdicts = list(threads.map(_tried, wanted.bugs))
    caught = sum(verdict.is_caught for verdict in verdicts)
    print(f"\n{caught} of {len(verdicts)} planted bugs were caught, in {time.monotonic() - began:.0f} s")
    return 0 if caught == len(verdicts) else 1


def _wanted(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="how many bugs at once")
    parser.add_argument("--only", default="", help="bugs that have these words in their name")
    wanted = parser.parse_args(arguments)
    wanted.bugs = [bug for bug in BUGS if wanted.only in bug.name]
    return wanted


def _require_green(bugs: Sequence[Bug]) -> None:
    tests = sorted({test for bug in bugs for test in bug.tests})
    began = time.monotonic()
    with copied() as root:
        answer = run(tests, root, _ALL_SECONDS)
    if answer.failed:
        raise NoAnswer(f"these fail without any bug: {', '.join(answer.failed)}\n{answer.printed[-3000:]}")
    print(f"{len(tests)} tests are green without a bug ({time.monotonic() - began:.0f} s)\n", flush=True)


def _tried(bug: Bug) -> Verdict:
    needs_lab = any(test.startswith(("tests/cluster/", "tests/faults/")) for test in bug.tests)
    if needs_lab:
        with _LABS:
            verdict = _one(bug)
    else:
        verdict = _one(bug)
    print(_row(verdict), flush=True)
    return verdict


def _one(bug: Bug) -> Verdict:
    began = time.monotonic()
    try:
        with copied() as root:
            plant(bug, root)
            answer = run(bug.tests, root, _SECONDS)
    except NoAnswer as why:
        return Verdict(bug, time.monotonic() - began, why=str(why))
    left = tuple(test for test in bug.tests if not any(_is_of(failed, test) for failed in answer.failed))
    return Verdict(bug, time.monotonic() - began, next(iter(answer.failed.values()), ""), left)


def _is_of(failed: str, test: str) -> bool:
    """Whether a failure is of a test, or of one of its cases."""
    return failed == test or failed.startswith(f"{test}[")


def _row(verdict: Verdict) -> str:
    what = "caught   " if verdict.is_caught else "NO ANSWER" if verdict.why else "SURVIVES "
    told = [f"green: {test}" for test in verdict.left]
    told += [line for line in (verdict.why, verdict.said[:_MOST_SAID]) if line]
    return "\n".join(
        (f"{what}  {verdict.seconds:5.1f} s  {verdict.bug.name}", *(f"           {line}" for line in told))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
