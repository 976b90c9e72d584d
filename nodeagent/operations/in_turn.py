"""Makes the steps of a restore safe with a journal that lost lines on a full or failing disk. Called by its plan.

Only the beginning of what lets a machine run is durable for certain. Else the restored machine could be taken for the
old one and be saved over its memory, or half of what was put back be taken for a restore that goes on.
"""

from collections.abc import Sequence
from dataclasses import replace

from nodeagent.operations.aside import Aside
from nodeagent.operations.reviving import Reviving
from nodeagent.steps import NO_FACTS, Facts, Step


def in_turn(steps: Sequence[Step], aside: Aside) -> tuple[Step, ...]:
    """Each step never again once a later one began, and never forth again once taking back began."""
    return tuple(_in_turn(step, steps[number + 1 :], aside, is_first=not number) for number, step in enumerate(steps))


def _in_turn(step: Step, later: Sequence[Step], aside: Aside, *, is_first: bool) -> Step:
    def is_over(facts: Facts) -> bool:
        return any(f"{other.name}_began" in facts for other in later)

    def apply(facts: Facts) -> Facts:
        if is_over(facts):
            return NO_FACTS
        aside.require_way_forth(is_made=not is_first)
        return step.apply(facts)

    def is_done(facts: Facts) -> Facts | None:
        if is_over(facts):
            return NO_FACTS
        aside.require_way_forth(is_made=not is_first)
        return step.is_done(facts)

    def undo(facts: Facts) -> Facts:
        """With whatever came after it and whose beginning was lost; taking back what never was does nothing."""
        aside.note_way_back()
        for other in reversed(later):
            if other.guest_is_down and f"{other.name}_began" not in facts:
                other.undo(facts)
        return step.undo(facts)

    return replace(step, apply=apply, is_done=is_done, undo=undo)


def while_off(step: Step, reviving: Reviving) -> Step:
    """The same step, refused where the machine runs: somebody started it in between."""

    def apply(facts: Facts) -> Facts:
        reviving.refuse_if_started()
        return step.apply(facts)

    return replace(step, apply=apply)
