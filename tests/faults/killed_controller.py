"""A controller that dies of SIGKILL before or after its first write to the directory.

Run as `python -m tests.faults.killed_controller before|after ARGUMENT…`; the arguments are vmkeep-controller's. Started
again and again, turn by turn before and after, it dies around every write it has.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from controller.cli import main
from vmkeep.directory.openldap import OpenLdapStore

WRITES = ("add", "claim", "replace", "delete")


def die_around_the_first_write(when: str) -> None:
    """Replace each verb that writes."""
    for name in WRITES:
        setattr(OpenLdapStore, name, _deadly(getattr(OpenLdapStore, name), when))


def _deadly(write: Callable[..., Any], when: str) -> Callable[..., Any]:
    def deadly(*arguments: Any, **more: Any) -> Any:
        if when == "after":
            write(*arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    return deadly


if __name__ == "__main__":
    die_around_the_first_write(sys.argv.pop(1))
    main()
