"""A controller whose clock runs sixty times as fast. Run as `python -m tests.faults.hasty_controller ARGUMENT…`."""

import functools
from datetime import UTC, datetime

from controller import cli
from controller.cycle import Cycle, utc_now

_HASTE = 60
_BEGUN = datetime.now(UTC)


def hasty_now() -> datetime:
    """A minute for each second since the start."""
    return _BEGUN + (utc_now() - _BEGUN) * _HASTE


if __name__ == "__main__":
    cli.Cycle = functools.partial(Cycle, clock=hasty_now)  # type: ignore[assignment, misc]
    cli.utc_now = hasty_now
    cli.main()
