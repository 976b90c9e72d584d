"""The last step of bringing a machine back from memory: letting it run. Called by the plans of snapshot and restore.

From the note that it was let go its memory is of the past: whatever is found later, it is not used again. So this is a
step of its own, and the journal must hold its beginning.
"""

from nodeagent.host.errors import HostFailure
from nodeagent.order import Order
from nodeagent.steps import NO_FACTS, Facts, Host
from vmkeep.contract.machine import Power


def let_go(order: Order, host: Host) -> Facts:
    """Let a machine that waits run on from its instant."""
    view = host.hypervisor.look(order.machine)
    if view is None or not view.is_active:
        raise HostFailure("the machine stopped before it was let go")
    if view.power is Power.PAUSED:
        host.hypervisor.resume(order.machine)
    return NO_FACTS


def was_let_go(order: Order, host: Host) -> Facts | None:
    """Whether it was. One that is off by now may have run: never again from its memory."""
    view = host.hypervisor.look(order.machine)
    if view is not None and view.is_active:
        return None if view.power is Power.PAUSED else NO_FACTS
    if view is not None and view.stopped_by_itself:
        return {"stopped": "the machine was switched off right after it ran on"}
    host.hypervisor.start(order.machine)
    return {"stopped": "the machine had to be started anew: it stopped right after it ran on"}
