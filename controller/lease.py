"""The lease: of any number of controllers that serve, one acts. Taken, renewed and given back here.

Every change is a compare-and-set on a version that is new each time. Whoever has the lease counts from before it asked
for it; whoever waits counts from after it saw the version, and longer. So no clock is ever compared with another, and
whoever was stopped for a while finds that its time is over before it writes. `Leased` is a store that looks before each
call; what was on its way already is fenced by the epoch, see `Catalogue`.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused, TryLater
from vmkeep.contract.names import Attribute, ObjectClass, Tree
from vmkeep.contract.timestamps import to_timestamp
from vmkeep.directory.lease import LeaseEntry, read_lease
from vmkeep.directory.port import (
    ANYTHING,
    AtLeast,
    Attributes,
    Claim,
    Entry,
    Filter,
    Not,
    Present,
    Scope,
    Store,
    Watcher,
)

RENEWAL = 1 / 3  # of its time, after which a holder renews; a waiting controller looks as often
MARGIN = 1 / 4  # of its time, by which the others wait longer: clocks of two hosts may run apart by that much
_DESCRIPTION = "Which controller acts; written by the controllers alone"


class LeaseLost(TryLater):
    """Somebody else acts by now, or may: nothing more is to be written."""


def since_boot() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Lease:
    """One controller's side of it. `holder` names this process and no other; `seconds` is how long a renewal holds.

    `epoch` is that of the tenure at hand, or of the last one. `other` is the entry as last seen, where somebody else
    has it.
    """

    store: Store
    tree: Tree
    holder: str
    seconds: float
    clock: Callable[[], float] = since_boot
    now: Callable[[], datetime] = _now
    token: Callable[[], str] = field(default=lambda: secrets.token_hex(8))
    epoch: int = 0
    other: LeaseEntry = field(default_factory=LeaseEntry)
    _version: str = ""
    _asked: float = 0.0
    _seen: tuple[str, float] = ("", 0.0)

    @property
    def is_held(self) -> bool:
        """Whether this controller may act now, by its own clock alone."""
        return bool(self._version) and self.clock() < self._asked + self.seconds

    def attend(self) -> bool:
        """Renew or take the lease where that can be done; whether this controller may act."""
        entry = self._read()
        if entry.holder == self.holder:
            # Also where the answer was lost, or our time ran out and nobody else came.
            self.epoch = entry.epoch
            if entry.version != self._version or self._is_renewal_due:
                self._renew(entry.version)
        elif not entry.holder or self._has_run_out(entry):
            self._take(entry)
        else:
            self._stand_down(entry)
        return self.is_held

    def demand(self) -> None:
        """Renew where that is due; LeaseLost where this controller may no longer act."""
        if not self.is_held:
            self._version = ""
            raise LeaseLost("the time of the lease ran out before it was renewed; nothing more is written")
        if self._is_renewal_due and not self._renew(self._version):
            raise LeaseLost("the lease has gone to another controller; nothing more is written")

    def give_back(self) -> bool:
        """Let the next controller go on at once; False where there was nothing to give."""
        if not self._version:
            return False
        free: dict[str, Sequence[str]] = {Attribute.LEASE_HOLDER: (), Attribute.LEASE_SINCE: ()}
        changes = {**free, Attribute.LEASE_VERSION: (self.token(),)}
        expected: dict[str, str] = {Attribute.LEASE_VERSION: self._version, Attribute.LEASE_HOLDER: self.holder}
        self._version = ""
        return self.store.claim(self.tree.lease, expected, changes) is Claim.WON

    @property
    def next_look(self) -> float:
        """In how many seconds to attend to it again."""
        now, pause = self.clock(), self.seconds * RENEWAL
        if self._version:
            return max(self._asked + pause - now, 0.0)
        return max(min(self._seen[1] + _patience(self.seconds, self.other) - now, pause), 0.0)

    @property
    def _is_renewal_due(self) -> bool:
        return self.clock() >= self._asked + self.seconds * RENEWAL

    def _read(self) -> LeaseEntry:
        entry = read_lease(self.store, self.tree)
        if entry is not None:
            return entry
        first = {"objectClass": ("top", ObjectClass.LEASE), "cn": ("lease",), "description": (_DESCRIPTION,)}
        self.store.add(self.tree.lease, first)
        entry = read_lease(self.store, self.tree)
        if entry is None:
            raise Refused(
                ReturnValue.CANNOT_CONNECT_TO_BACKEND,
                f"{self.tree.lease} is there and cannot be read; nothing is started without it: apply ldif/access.ldif",
            )
        return entry

    def _renew(self, version: str) -> bool:
        expected: dict[str, str] = {Attribute.LEASE_VERSION: version, Attribute.LEASE_HOLDER: self.holder}
        return self._claim(expected, {Attribute.LEASE_SECONDS: (f"{self.seconds:g}",)})

    def _take(self, entry: LeaseEntry) -> None:
        epoch = max(entry.epoch, self._greatest_epoch(entry.epoch)) + 1
        changes: dict[str, Sequence[str]] = {
            Attribute.LEASE_HOLDER: (self.holder,),
            Attribute.LEASE_SINCE: (to_timestamp(self.now()),),
            Attribute.LEASE_SECONDS: (f"{self.seconds:g}",),
            Attribute.EPOCH: (str(epoch),),
        }
        if self._claim({Attribute.LEASE_VERSION: entry.version} if entry.version else {}, changes):
            self.epoch = epoch

    def _claim(self, expected: Mapping[str, str], changes: Attributes) -> bool:
        provided = ANYTHING if expected else Not(Present(Attribute.LEASE_VERSION))
        # Where the answer is lost nothing is believed: what stands in the entry says who has it.
        self._version, version, asked = "", self.token(), self.clock()
        wanted: dict[str, Sequence[str]] = {**changes, Attribute.LEASE_VERSION: (version,)}
        if self.store.claim(self.tree.lease, expected, wanted, provided=provided) is Claim.LOST:
            return False
        self._version, self._asked, self.other = version, asked, LeaseEntry()
        return True

    def _greatest_epoch(self, known: int) -> int:
        """Of leaves, where the lease was lost or set back: by an epoch below theirs none of them could be moved."""
        newer = self.store.search(
            self.tree.machines, AtLeast(Attribute.EPOCH, known + 1), attributes=(Attribute.EPOCH,)
        )
        return max((int(entry.first(Attribute.EPOCH) or 0) for entry in newer), default=0)

    def _has_run_out(self, entry: LeaseEntry) -> bool:
        """Whether this version has been standing for longer than whoever wrote it may count on it."""
        now = self.clock()  # after it was read: it may have been written at the last moment
        if self._seen[0] != entry.version or not self._seen[1]:
            self._seen = entry.version, now
        return now >= self._seen[1] + _patience(self.seconds, entry)

    def _stand_down(self, entry: LeaseEntry) -> None:
        self._version, self.other = "", replace(entry, changed=None)


def _patience(seconds: float, other: LeaseEntry) -> float:
    return max(seconds, other.seconds) * (1 + MARGIN)


class Leased:
    """A Store that looks at the lease before each call, and renews it on the way; raises LeaseLost."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease

    def read(self, dn: str, attributes: Sequence[str] = ()) -> Entry | None:
        """See Store."""
        self._lease.demand()
        return self._store.read(dn, attributes)

    def search(
        self, base: str, matching: Filter = ANYTHING, scope: Scope = Scope.SUBTREE, attributes: Sequence[str] = ()
    ) -> Iterator[Entry]:
        """See Store. Thousands of entries may take longer than the lease holds."""
        self._lease.demand()
        for entry in self._store.search(base, matching, scope, attributes):
            self._lease.demand()
            yield entry

    def add(self, dn: str, attributes: Attributes) -> bool:
        """See Store."""
        self._lease.demand()
        return self._store.add(dn, attributes)

    def claim(
        self,
        dn: str,
        expected: Mapping[str, str],
        changes: Attributes,
        additions: Attributes | None = None,
        provided: Filter = ANYTHING,
    ) -> Claim:
        """See Store."""
        self._lease.demand()
        return self._store.claim(dn, expected, changes, additions, provided)

    def replace(self, dn: str, changes: Attributes) -> bool:
        """See Store."""
        self._lease.demand()
        return self._store.replace(dn, changes)

    def delete(self, dn: str, provided: Filter = ANYTHING) -> bool:
        """See Store."""
        self._lease.demand()
        return self._store.delete(dn, provided)

    def watch(self, base: str, matching: Filter, wake: Callable[[], None], *, polls: bool = True) -> Watcher:
        """See Store."""
        return self._store.watch(base, matching, wake, polls=polls)

    def close(self) -> None:
        """See Store."""
        self._store.close()
