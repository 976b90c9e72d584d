"""Ends a run of tests that imported any part of the project from elsewhere than the folder they stand in.

A plugin of pytest, used where bugs are planted in a copy: tests of the copy that imported the original prove nothing.
"""

import sys
from pathlib import Path

import pytest

PARTS = ("nodeagent", "controller", "vmkeep", "lab", "tests")


def strangers(root: Path) -> list[str]:
    """Modules of the project that came from elsewhere."""
    known = [(name, module) for name, module in list(sys.modules.items()) if name.split(".")[0] in PARTS]
    places = {name: getattr(module, "__file__", None) for name, module in known}
    return [f"{name} from {place}" for name, place in places.items() if place and not _is_below(place, root)]


def _is_below(place: str, root: Path) -> bool:
    return Path(place).resolve().is_relative_to(root.resolve())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test."""
    if found := strangers(session.config.rootpath):
        raise pytest.UsageError(f"imported from elsewhere: {', '.join(found)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """And what was imported only while they ran."""
    if strangers(session.config.rootpath):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
