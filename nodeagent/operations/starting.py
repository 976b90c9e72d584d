"""The order in which machines of a group run on: a saved one waits for its turn, and tells when it runs.

Called by the instant, only where the leaf asks for an order. Neither step touches the machine, and neither ever fails.
"""

from nodeagent.order import Order
from nodeagent.steps import NO_FACTS, Facts, Host, Step
from nodeagent.turns import OUT_OF_TURN
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.machine import Power


def turn(order: Order, host: Host) -> tuple[Step, ...]:
    """The step before a saved machine comes back: while it is off nobody can move it or let it run.

    Not waited for over a crash: it has stood still for long enough.
    """
    if order.start_wait is None or order.power is not Power.RUNNING:
        return ()

    def wait(facts: Facts) -> Facts:
        if float(facts.get("save_began", host.turns.since)) < host.turns.since:
            return killed(facts)
        return {"turn": host.turns.wait(order, host.stop)}

    def killed(_facts: Facts) -> Facts:
        return {"turn": f"{OUT_OF_TURN}: the agent was killed while the machine stood still"}

    step = Step("turn", "wait for others of its group", ReturnValue.CANNOT_RESTORE_MACHINE, wait, killed)
    return (step.while_guest_is_down(True),)


def started(order: Order, host: Host) -> tuple[Step, ...]:
    """The step after the instant, for those that wait for this machine."""
    if order.start_wait is None:
        return ()

    def tell(_facts: Facts) -> Facts:
        host.turns.tell(order, host.wall_clock())
        return NO_FACTS

    return (Step("started", "tell that the machine runs on", ReturnValue.UNDEFINED_ERROR, tell),)
