"""A controller that is stopped, until somebody lets it go on, just as its first write of a kind is on its way.

Run as `python -m tests.faults.stopped_controller add|MODE ARGUMENT…`; the arguments are vmkeep-controller's. It has
looked at the lease by then: what it sends when it goes on is as late as a write can be.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from controller.cli import main
from vmkeep.contract.names import Attribute
from vmkeep.directory.openldap import OpenLdapStore


def stop_before_the_first(kind: str) -> None:
    """`add` of a leaf, or a claim to a mode."""
    done: list[str] = []

    def slowly(write: Callable[..., Any]) -> Callable[..., Any]:
        def slow(store: OpenLdapStore, dn: str, *arguments: Any, **more: Any) -> Any:
            mode = "add" if write.__name__ == "add" else str(arguments[1].get(Attribute.MODE, [""])[0])
            if dn.startswith("ou=2") and mode == kind and not done:
                done.append(dn)
                os.kill(os.getpid(), signal.SIGSTOP)
            return write(store, dn, *arguments, **more)

        return slow

    for name in ("add", "claim"):
        setattr(OpenLdapStore, name, slowly(getattr(OpenLdapStore, name)))


if __name__ == "__main__":
    stop_before_the_first(sys.argv.pop(1))
    main()
