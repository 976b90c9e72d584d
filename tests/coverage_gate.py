"""What the whole suite must have run of agent and controller: 95 % with branches, and every `except`.

Run by `make coverage`, once all measurements are combined. A handler is code for a bad day; one that no test has
entered is a guess.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage
from coverage.results import Analysis

ROOT = Path(__file__).parents[1]
PACKAGES = ("controller", "nodeagent")
LEAST_PERCENT = 95.0


@dataclass(frozen=True)
class Counted:
    """So many of so many lines and branches."""

    lines: int = 0
    of_lines: int = 0
    branches: int = 0
    of_branches: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(
            self.lines + other.lines,
            self.of_lines + other.of_lines,
            self.branches + other.branches,
            self.of_branches + other.of_branches,
        )

    @property
    def percent(self) -> float:
        """Lines and branches together, as coverage counts."""
        return _percent(self.lines + self.branches, self.of_lines + self.of_branches)

    @property
    def percent_of_branches(self) -> float:
        """Branches alone."""
        return _percent(self.branches, self.of_branches)


def handlers(source: str) -> Iterator[tuple[int, int]]:
    """Where each `except` of a module stands, and where its body begins."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            yield node.lineno, node.body[0].lineno


def never_entered(source: str, executed: set[int]) -> list[int]:
    """The lines of those whose body never began."""
    return sorted(at for at, body in handlers(source) if body not in executed)


def judge(name: str, counted: Counted) -> tuple[str, bool]:
    """One line of the report, and whether it is enough."""
    least = min(counted.percent, counted.percent_of_branches)
    words = f"{name:11} {counted.percent:6.2f} % with branches, {counted.percent_of_branches:6.2f} % of branches alone"
    is_enough = least >= LEAST_PERCENT
    return words if is_enough else f"{words}: each has to be {LEAST_PERCENT:g} % at least", is_enough


def main() -> int:
    """Print what there is; 1 where it is not enough."""
    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    silent: list[str] = []
    verdicts: list[tuple[str, bool]] = []
    for package in PACKAGES:
        total = Counted()
        for path in sorted((ROOT / package).rglob("*.py")):
            analysis = measured._analyze(str(path))
            total += _counted(analysis)
            lines = never_entered(path.read_text(encoding="utf-8"), analysis.executed)
            silent += [f"{path.relative_to(ROOT)}:{line}: no test has entered this except" for line in lines]
        verdicts.append(judge(package, total))
    print(*(words for words, _ in verdicts), *silent, sep="\n")
    return 0 if not silent and all(enough for _, enough in verdicts) else 1


def _counted(analysis: Analysis) -> Counted:
    found = analysis.numbers
    return Counted(found.n_executed, found.n_statements, found.n_executed_branches, found.n_branches)


def _percent(some: int, of: int) -> float:
    return 100 * some / of if of else 0.0  # nothing measured is nothing shown


if __name__ == "__main__":
    sys.exit(main())
