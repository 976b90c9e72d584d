"""A leaf's life as slapd itself recorded it: who wrote which mode, State and ReturnValue, in one line a write."""

from lab.cluster import Lab

_TOLD = ("sstProvisioningMode", "sstProvisioningState", "sstProvisioningReturnValue")


def transcript(lab: Lab, leaf_dn: str) -> list[str]:
    """`writer  mode  State  ReturnValue` for every write that changed the mode; times are shown as 'time'."""
    values: dict[str, str] = {}
    lines = []
    for write in lab.directory.history(leaf_dn):
        before = values.get(_TOLD[0])
        _apply(values, write.get("reqMod", []))
        if values.get(_TOLD[0]) != before:
            lines.append(" ".join((_writer(write["reqAuthzID"][0]), *(_shown(values.get(name)) for name in _TOLD))))
    return lines


def _apply(values: dict[str, str], modifications: list[str]) -> None:
    for modification in modifications:
        name, _, rest = modification.partition(":")
        operation, value = rest[:1], rest[2:]
        if operation == "-" or (operation == "=" and not value):
            values.pop(name, None)
        else:
            values[name] = value


def _writer(dn: str) -> str:
    name = dn.split(",", 1)[0]
    return {"cn=controller": "controller", "cn=admin": "admin"}.get(name.casefold(), "agent")


def _shown(value: str | None) -> str:
    if value is None:
        return "-"
    return "time" if len(value) == 16 and value.endswith("Z") else value
