"""The lease as the directory holds it: which controller acts, and since when. Read by controller and console.

What a controller does with it is in `controller.lease`. Times of the directory and of the holder are for people only:
who may act is never decided by comparing clocks.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vmkeep.contract.names import Attribute, Tree
from vmkeep.directory.port import Store

_CHANGED = "modifyTimestamp"
_CLOCKS_APART = 5.0  # seconds that the clocks of directory and admin may differ without a word about it
_GENERALIZED_TIME = re.compile(r"(\d{14})(?:\.\d+)?Z")


@dataclass(frozen=True)
class LeaseEntry:
    """The entry as read. `holder` and `version` are empty where nobody has it; `seconds` is how long a renewal holds.

    `changed` is when it was last written, by the directory's clock.
    """

    holder: str = ""
    version: str = ""
    epoch: int = 0
    since: str = ""
    seconds: float = 0.0
    changed: datetime | None = None

    def seems_held(self, now: datetime) -> bool:
        """Whether somebody acts, as far as this clock can tell: for an admin, never to decide by."""
        if not self.holder:
            return False
        return self.changed is None or (now - self.changed).total_seconds() <= 2 * self.seconds + _CLOCKS_APART

    def sentence(self, now: datetime) -> str:
        """Who acts, for an admin."""
        if not self.holder:
            return f"no controller holds the lease; the last was epoch {self.epoch}"
        renewed = f", renewed {_ago(now - self.changed)} (it holds for {self.seconds:g} s)" if self.changed else ""
        doubt = "" if self.seems_held(now) else ": is any controller running?"
        since = self.since or "an unknown time"
        return f"{self.holder} has held the lease since {since}, epoch {self.epoch}{renewed}{doubt}"


def read_lease(store: Store, tree: Tree) -> LeaseEntry | None:
    """The lease; None where there is no such entry, or it may not be read."""
    wanted = (Attribute.LEASE_HOLDER, Attribute.LEASE_VERSION, Attribute.EPOCH, Attribute.LEASE_SINCE)
    entry = store.read(tree.lease, (*wanted, Attribute.LEASE_SECONDS, _CHANGED))
    if entry is None:
        return None
    holder, version, epoch, since = (entry.first(name) or "" for name in wanted)
    return LeaseEntry(
        holder=holder,
        version=version,
        epoch=int(epoch) if epoch.lstrip("-").isdecimal() else 0,
        since=since,
        seconds=_seconds(entry.first(Attribute.LEASE_SECONDS) or ""),
        changed=_moment(entry.first(_CHANGED) or ""),
    )


def _seconds(text: str) -> float:
    try:
        return max(float(text), 0.0)
    except ValueError:
        return 0.0


def _moment(text: str) -> datetime | None:
    found = _GENERALIZED_TIME.fullmatch(text)
    return datetime.strptime(found.group(1), "%Y%m%d%H%M%S").replace(tzinfo=UTC) if found else None


def _ago(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    if seconds < 0:
        return f"{-seconds} s ahead of this host's clock"
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min ago"
    return f"{minutes} min {seconds % 60} s ago" if minutes else f"{seconds} s ago"
