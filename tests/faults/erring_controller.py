"""A controller whose clock errs. Run as `python -m tests.faults.erring_controller SECONDS ARGUMENT…`."""

import functools
import sys
from datetime import datetime, timedelta

from controller import cli
from controller.cycle import Cycle, utc_now


def err_by(seconds: float) -> None:
    """Give the controller another clock: it takes one as an argument."""

    def clock() -> datetime:
        return utc_now() + timedelta(seconds=seconds)

    cli.Cycle = functools.partial(Cycle, clock=clock)  # type: ignore[assignment, misc]
    cli.utc_now = clock


if __name__ == "__main__":
    err_by(float(sys.argv.pop(1)))
    cli.main()
