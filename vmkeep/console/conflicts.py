"""What differs between a saved machine and the live one, as the agent wrote it to the leaf. Pure; for `restore`."""

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class Conflict(BaseModel):
    """One difference: `kind` in words, `what` it is about (a disk's target, an attribute), and both values."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    what: str = ""
    saved: str = ""
    live: str = ""


_CONFLICTS = TypeAdapter(tuple[Conflict, ...])


def read_conflicts(text: str) -> tuple[Conflict, ...] | None:
    """The conflicts of a leaf, none for an empty text; None where they cannot be read."""
    if not text:
        return ()
    try:
        return _CONFLICTS.validate_json(text)
    except ValidationError:
        return None
