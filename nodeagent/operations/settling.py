"""A QEMU that dies refuses everything before libvirt says that the machine is off. Used where one looks, acts and looks
again: rounds that follow at once would all see it running.
"""

import time

from nodeagent.order import Order
from nodeagent.steps import Host

_DYING_SECONDS = 1.0
_POLL_SECONDS = 0.05


def let_settle(host: Host, order: Order) -> None:
    """After a refusal: return when the machine is off, or when it has had time to be."""
    deadline = time.monotonic() + _DYING_SECONDS
    while time.monotonic() < deadline:
        view = host.hypervisor.look(order.machine)
        if view is None or not view.is_active:
            return
        time.sleep(_POLL_SECONDS)  # it may well live on, and no event tells that
