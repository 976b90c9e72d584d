"""What the directory itself recorded of leaves: each write's time, writer, and the mode and State it left."""

import re
from dataclasses import dataclass

from lab.cluster import Lab
from lab.slapd import AUDIT_SUFFIX

# The protocol's own words: snapshotting, unretainingSmallFiles; snapshotted, unretainedLargeFiles.
_AT_WORK, _DONE = re.compile(r"ing(SmallFiles|LargeFiles)?$"), re.compile(r"ed(SmallFiles|LargeFiles)?$")
_PROGRESS = re.compile(r"vmkeep(Percent|Started|StartWait):[+=] ")
_ENTRY_BEFORE = re.compile(r"vmkeepEntryBefore:")
_MODE, _STATE, _CODE = "sstProvisioningMode", "sstProvisioningState", "sstProvisioningReturnValue"


def is_at_work(mode: str) -> bool:
    """Whether a mode says that somebody works, or failed at it."""
    return bool(_AT_WORK.search(mode))


@dataclass(frozen=True)
class Write:
    """One write of a leaf that set mode or State; what it did not set is as the write before left it."""

    at: str
    dn: str
    writer: str
    mode: str
    state: str
    code: str
    is_note: bool

    @property
    def is_claim(self) -> bool:
        """Whether it begins an attempt: at work from now on. A note of progress says that it goes on."""
        return not self.is_note and is_at_work(self.mode) and self.state == "0" and self.code in ("0", "")

    @property
    def is_end(self) -> bool:
        """Whether it ends one, well or not."""
        is_done = bool(_DONE.search(self.mode)) and self.mode not in ("finished", "initialized")
        return not self.is_note and (is_done or (is_at_work(self.mode) and self.state != "0"))

    def __str__(self) -> str:
        return f"{self.writer} {self.mode} {self.state} {self.code}"


def writes_of(lab: Lab, since: str) -> list[Write]:
    """Every write since a time (as slapd writes it) that set the mode or the State of a leaf, in order."""
    matching = f"(&(objectClass=auditWriteObject)(reqStart>={since}))"
    entries = lab.directory.search(AUDIT_SUFFIX, matching, "one", "reqStart", "reqDN", "reqAuthzID", "reqMod")
    known: dict[str, dict[str, str]] = {}
    found = []
    for entry in sorted(entries, key=lambda each: each["reqStart"][0]):
        dn = entry["reqDN"][0]
        values, touched = known.setdefault(dn.casefold(), {}), False
        before = dict(values)
        modifications = entry.get("reqMod", [])
        for modification in modifications:
            name, _, rest = modification.partition(":")
            if name in (_MODE, _STATE, _CODE) and rest[:1] in ("+", "="):
                values[name] = rest[2:]
                touched = touched or name in (_MODE, _STATE)
        if touched:
            mode, state, code = (values.get(name, "") for name in (_MODE, _STATE, _CODE))
            writer = entry["reqAuthzID"][0].partition(",")[0]
            # Before a controller changes an entry it writes on the leaf, so that a later one's epoch would stop it.
            is_look = writer == "cn=controller" and values == before
            is_note = is_look or _is_note(mode, state, modifications)
            found.append(Write(entry["reqStart"][0], dn, writer, mode, state, code, is_note))
    return found


def _is_note(mode: str, state: str, modifications: list[str]) -> bool:
    """Whether it says how far work is that goes on, whose turn it is, or what an entry was before its restore."""
    goes_on = is_at_work(mode) and state == "0"
    return any((goes_on and _PROGRESS.match(each)) or _ENTRY_BEFORE.match(each) for each in modifications)
