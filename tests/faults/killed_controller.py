"""A controller that dies of SIGKILL before or after its first write to the directory that decides something.

Run as `python -m tests.faults.killed_controller before|after ARGUMENT…`; the arguments are vmkeep-controller's. Started
again and again, turn by turn before and after, it dies around every write it has. Taking the lease, and marking leaves
with its epoch, each of them has to do anew; the next one finds the lease as if it had run out since.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from controller.cli import main
from vmkeep.contract.names import Attribute
from vmkeep.directory.openldap import OpenLdapStore

FREE = {Attribute.LEASE_HOLDER: ()}
WRITES = ("add", "claim", "replace", "delete")


def die_around_the_first_write(when: str) -> None:
    """Replace each verb that writes."""
    replace = OpenLdapStore.replace
    leases: list[str] = []

    def die(store: OpenLdapStore) -> None:
        for dn in leases:
            replace(store, dn, FREE)
        os.kill(os.getpid(), signal.SIGKILL)

    for name in WRITES:
        setattr(OpenLdapStore, name, _deadly(getattr(OpenLdapStore, name), when, leases, die))


def _deadly(
    write: Callable[..., Any], when: str, leases: list[str], die: Callable[[OpenLdapStore], None]
) -> Callable[..., Any]:
    def deadly(store: OpenLdapStore, dn: str, *arguments: Any, **more: Any) -> Any:
        if dn.startswith("cn=lease,"):
            leases[:] = [dn]
            return write(store, dn, *arguments, **more)
        if write.__name__ == "claim" and arguments[1].keys() == {Attribute.EPOCH}:
            return write(store, dn, *arguments, **more)
        if when == "after":
            write(store, dn, *arguments, **more)
        return die(store)

    return deadly


if __name__ == "__main__":
    die_around_the_first_write(sys.argv.pop(1))
    main()
