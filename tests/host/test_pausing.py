"""How long QEMU may stop a machine: as short as it lets it be, longer while that does not come to an end."""

import threading
from dataclasses import dataclass, field

import libvirt
import pytest

from lab.waiting import until
from nodeagent.host import pausing
from nodeagent.host.pausing import short_pause

BEFORE = 300


@dataclass
class Domain:
    """A machine that notes its limits; `goes_at` is the one at which it is gone."""

    limits: list[int] = field(default_factory=list)
    goes_at: int = 0
    full: threading.Event = field(default_factory=threading.Event)

    def migrateGetMaxDowntime(self, _flags: int) -> int:
        return BEFORE

    def migrateSetMaxDowntime(self, limit: int, _flags: int) -> None:
        self.limits.append(limit)
        if limit == 5000:
            self.full.set()
        if self.goes_at and limit >= self.goes_at:
            raise libvirt.libvirtError("the machine has gone")


def test_the_limit_is_short_and_put_back() -> None:
    domain = Domain()
    with short_pause(domain):
        pass
    assert domain.limits == [20, BEFORE]


@pytest.mark.parametrize("goes_at", [0, 80], ids=["stays", "goes"])
def test_the_limit_grows_while_it_takes_long_up_to_a_most(goes_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "_GROWS_EVERY_SECONDS", 0.01)
    domain = Domain(goes_at=goes_at)
    with short_pause(domain):
        assert domain.full.wait(20)
        until("nothing more to be raised", lambda: "pause" not in [thread.name for thread in threading.enumerate()], 10)
    assert domain.limits == [20, 80, 320, 1280, 5000, BEFORE]
