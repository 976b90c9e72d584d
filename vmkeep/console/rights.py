"""What only the directory's admin may write, and what to say to anybody else. Called where machines are added.

The console logs in as the controller as a rule, which may write leaves and no machine's entry.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from vmkeep.contract.errors import Refused
from vmkeep.directory.errors import NotAllowed


@contextmanager
def needing_the_admin(machine: str) -> Iterator[None]:
    """A refusal for want of rights says as whom to log in, and which settings say so."""
    try:
        yield
    except NotAllowed as why:
        raise Refused(
            why.code,
            f"{machine}: {why.sentence}; only the directory's admin may add or remove machines: log in as the admin "
            "(bind_dn and password_file below [directory], in a file given with --settings)",
        ) from None
