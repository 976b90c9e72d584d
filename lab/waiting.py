"""Waiting with a deadline: the only way the lab and its tests wait for anything."""

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

Value = TypeVar("Value")


def until(what: str, check: Callable[[], Value | None], limit: float, step: float = 0.05) -> Value:
    """Ask again and again until `check` answers something true; LabError names `what` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise LabError(f"waited {limit:g} s in vain: {what}")
        time.sleep(step)
