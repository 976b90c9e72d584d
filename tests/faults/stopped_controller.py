"""A controller that is stopped, until somebody lets it go on, just as its first write of a kind is on its way.

Run as `python -m tests.faults.stopped_controller add|verdict|MODE ARGUMENT…`; the arguments are vmkeep-controller's.
It has looked at the lease by then: what it sends when it goes on is as late as a write can be.
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
    """`add` of a leaf, a group's `verdict` on one, or a claim to a mode."""
    done: list[str] = []

    def slowly(write: Callable[..., Any]) -> Callable[..., Any]:
        def slow(store: OpenLdapStore, dn: str, *arguments: Any, **more: Any) -> Any:
            if _kind(write.__name__, dn, arguments) == kind and not done:
                done.append(dn)
                os.kill(os.getpid(), signal.SIGSTOP)
            return write(store, dn, *arguments, **more)

        return slow

    for name in ("add", "claim", "replace"):
        setattr(OpenLdapStore, name, slowly(getattr(OpenLdapStore, name)))


def _kind(verb: str, dn: str, arguments: tuple[Any, ...]) -> str:
    if not dn.startswith("ou=2"):
        return ""
    changes = arguments[1] if verb == "claim" else arguments[0]
    if Attribute.GROUP_CONSISTENCY in changes:
        return "verdict"
    return "add" if verb == "add" else str(changes.get(Attribute.MODE, [""])[0])


if __name__ == "__main__":
    stop_before_the_first(sys.argv.pop(1))
    main()
