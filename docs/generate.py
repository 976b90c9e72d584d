"""Writes docs/reference/ from the program itself: `make docs`. A test fails when the pages are stale."""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from controller import cli as controller_cli
from controller import report
from nodeagent import cli as node_agent_cli
from tests.planted.catalogue import BUGS
from vmkeep.console import cli as console_cli
from vmkeep.console import outlook, restore
from vmkeep.console.status import Standing
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.machine import Power
from vmkeep.contract.manifest import Consistency
from vmkeep.contract.modes import TABLE, Circle, Kind, Row
from vmkeep.contract.names import OIDS, Attribute, ObjectClass
from vmkeep.contract.timetable import Why
from vmkeep.service import settings
from vmkeep.service.command import ERROR, USAGE

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
_NOTE = "<!-- Written by docs/generate.py; edit the program and run `make docs`. -->\n\n"
_DEFINITION = re.compile(r"\(\s*([0-9.]+)\s+NAME '(\w+)'\s+DESC '([^']*)'")


def pages() -> dict[str, str]:
    """Every page of the reference by its file name."""
    made: dict[str, Callable[[], Iterable[str]]] = {
        "modes.md": _modes,
        "return-values.md": _return_values,
        "attributes.md": _attributes,
        "settings.md": _settings,
        "commands.md": _commands,
        "planted-bugs.md": _planted_bugs,
    }
    return {name: _NOTE + "\n".join(lines()).rstrip() + "\n" for name, lines in made.items()}


def main() -> None:
    """Write the pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
        print(f"wrote {REFERENCE / name}")


# modes


def _modes() -> Iterator[str]:
    yield "# Modes\n"
    yield _prose(
        "A backup leaf is a state machine. Its mode is the value of `sstProvisioningMode`; upper and lower case are the "
        "same. State is `0` where work is asked for or being done, and otherwise the time at which the mode was reached. "
        "A leaf that stands in a mode of work with a return value other than 0 failed there. Success of a backup is "
        "`finished` with return value 0, nothing else."
    )
    for circle in Circle:
        rows = [row for row in TABLE if row.circle is circle]
        yield f"## {circle.value.capitalize()}\n"
        yield from _table(
            ("mode", "kind", "written by", "State", "reached from", "after a restart", "meaning"),
            [_mode_row(row) for row in rows],
        )
        yield ""
        yield from _diagram(rows)
        yield ""


def _mode_row(row: Row) -> tuple[str, ...]:
    before = ", ".join(f"`{mode}`" for mode in row.follows) or "nothing: the leaf is added"
    state = "time" if row.state_is_time else "0"
    return f"`{row.mode}`", row.kind.value, row.writer.value, state, before, row.restart.value, row.meaning


def _diagram(rows: Sequence[Row]) -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    for row in rows:
        if not row.follows:
            yield f"    [*] --> {row.mode}: {row.writer.value}"
        for before in row.follows:
            yield f"    {before} --> {row.mode}: {row.writer.value}"
        if row.kind is Kind.TERMINAL:
            yield f"    {row.mode} --> [*]"
    yield "```"


# return values


def _return_values() -> Iterator[str]:
    yield "# Return values\n"
    yield _prose(
        "Written to `sstProvisioningReturnValue`, with a sentence in `vmkeepMessage`. Below 100 each number means what it "
        "means to other tools of this family; from 100 on they are vmkeep's own. 0 alone says nothing: a backup is good "
        "when its mode is `finished` and its return value 0."
    )
    yield from _table(("number", "name", "meaning"), [(str(int(v)), f"`{v.name}`", v.meaning) for v in ReturnValue])


# attributes


def _attributes() -> Iterator[str]:
    known = _descriptions()
    yield "# Attributes and object classes\n"
    yield _prose(
        "What vmkeep reads or writes. The `sst…` ones have the numbers they have always had; the `vmkeep…` ones are "
        "vmkeep's own, in an arc derived from a UUID. Both are defined in `schema/`."
    )
    for title, names in (("Attributes", list(Attribute)), ("Object classes", list(ObjectClass))):
        yield f"## {title}\n"
        rows = [(f"`{name}`", f"`{OIDS[name]}`", known.get(OIDS[name], "")) for name in names if name in OIDS]
        yield from _table(("name", "OID", "description"), rows)
        yield ""


def _descriptions() -> dict[str, str]:
    """Descriptions by OID, from the schema files."""
    text = "".join((ROOT / "schema" / name).read_text(encoding="utf-8") for name in ("sst.ldif", "vmkeep.ldif"))
    return {found.group(1): found.group(3) for found in _DEFINITION.finditer(text.replace("\n ", ""))}


# settings


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield _prose(
        "TOML files. A key that is not known is refused, and every wrong key is named at once. Each command takes another "
        "file with `--settings FILE`, before or after the subcommand."
    ).rstrip()
    for title, path, model in (
        ("vmkeep-controller", settings.CONTROLLER_FILE, settings.ControllerSettings),
        ("vmkeep-nodeagent", settings.NODE_AGENT_FILE, settings.NodeAgentSettings),
        ("vmkeep", settings.CONSOLE_FILE, settings.ConsoleSettings),
    ):
        yield f"\n## {title}\n\nDefault file: `{path}`\n"
        rows, sections = _fields(model)
        if rows:
            yield from _table(("key", "type", "default", "meaning"), rows)
        for name, section in sections:
            yield from _section_lines(name, section)
    yield "\n## The section `[directory]`\n\nThe same in all three files.\n"
    directory = settings.ConsoleSettings.model_fields["directory"].annotation
    yield from _table(("key", "type", "default", "meaning"), _fields(directory)[0])
    yield "\nThe least a controller needs:\n"
    yield '```toml\n[directory]\nuri = "ldaps://ldap.example.org"\nsuffix = "dc=example,dc=org"'
    yield 'bind_dn = "cn=controller,ou=administration,dc=example,dc=org"\npassword_file = "/etc/vmkeep/password"\n```'


def _section_lines(name: str, section: Any) -> Iterator[str]:
    if name == "directory":
        yield "\n`[directory]` as below\n"
        return
    rows, parts = _fields(section)
    if rows:
        yield f"\n`[{name}]`\n"
        yield from _table(("key", "type", "default", "meaning"), rows)
    for part, below in parts:
        yield from _section_lines(f"{name}.{part}", below)


def _fields(model: Any) -> tuple[list[tuple[str, ...]], list[tuple[str, Any]]]:
    rows: list[tuple[str, ...]] = []
    sections: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section:
            sections.append((name, section))
        else:
            default = "must be set" if field.default is PydanticUndefined else f"`{_toml(field.default)}`"
            rows.append((f"`{name}`", _type_name(model, name), default, field.description or ""))
    return rows, sections


def _section(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _type_name(model: Any, name: str) -> str:
    """The type in a reader's words, from the model's JSON schema."""
    described = model.model_json_schema()["properties"][name]
    options = [option for option in described.get("anyOf", [described]) if option.get("type") != "null"]
    option = options[0]
    if "enum" in option:
        return " or ".join(f"`{value}`" for value in option["enum"])
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "array": "list",
    }
    return words.get(option.get("type", ""), "text")


def _toml(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else f"{value:g}"


# commands


def _commands() -> Iterator[str]:
    yield "# Commands"
    yield from _program("vmkeep", console_cli.app)
    yield from _status_notes()
    yield from _plan_notes()
    yield from _controllers_notes()
    yield from _restore_notes()
    yield from _prune_notes()
    yield from _sets_notes()
    yield from _program("vmkeep-controller", controller_cli.app)
    yield from _exit_codes()
    yield from _program("vmkeep-nodeagent", node_agent_cli.app)


def _program(name: str, app: typer.Typer) -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    yield f"\n## {name}\n\n{group.help}"
    for command_name, command in group.commands.items():
        arguments = " ".join(
            _argument(parameter) for parameter in command.params if not parameter.opts[0].startswith("-")
        )
        yield f"\n### `{f'{name} {command_name} {arguments}'.strip()}`\n\n{_paragraph(command.help)}\n"
        rows = [_option(parameter) for parameter in command.params if parameter.opts[0].startswith("-")]
        yield from _table(("option", "meaning"), rows)


def _argument(parameter: Any) -> str:
    text = parameter.metavar or parameter.name.upper()
    return text if parameter.required or text.startswith("[") else f"[{text}]"


def _option(parameter: Any) -> tuple[str, ...]:
    opts = ", ".join(f"`{one}`" for one in parameter.opts)
    return f"{opts} {parameter.metavar or ''}".strip(), parameter.help or ""


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def _exit_codes() -> Iterator[str]:
    yield "\n#### Exit codes of `vmkeep-controller run`\n"
    rows = [
        (
            str(report.ALL_FINISHED),
            "every machine that is not left out is finished; also when all are left out on purpose, or none is due",
        ),
        (
            str(report.NONE_FINISHED),
            "none is finished; there is no machine at all, or with `--due` none with a schedule; or the directory cannot be "
            "reached",
        ),
        (str(USAGE), "wrong usage, or settings that cannot be used"),
        (str(report.SOME_FAILED), "some are finished, others failed or still in flight"),
        ("130, 143", "interrupted, terminated: what is in flight is taken on by `serve` or the next run"),
    ]
    yield from _table(("code", "meaning"), rows)
    yield (
        "\n"
        + _prose(
            "A machine that has a leaf in flight gets no second one: the old one is taken on. A failed merge or retain is "
            "asked for again, `attempts` times, before the leaf counts as failed. Everything is looked up again after a lost "
            "connection; while the directory is away the run waits, up to its time limit."
        ).rstrip()
    )


def _status_notes() -> Iterator[str]:
    yield "\n#### Exit codes of `vmkeep status`\n"
    rows = [
        ("0", "no machine shown stands at `failed`, and each has the good backup that its plan promises"),
        (str(ERROR), "the directory cannot be reached, or has no machine of that name"),
        (str(USAGE), "wrong usage, or settings that cannot be used"),
        (
            str(console_cli.SOME_FAILED),
            "at least one machine shown stands at `failed`, or lacks the backup it is promised",
        ),
    ]
    yield from _table(("code", "meaning"), rows)
    yield "\n#### The shape of `vmkeep status --json`\n"
    yield "An object with the list `machines`. Each has the keys below; keys are only ever added. null means: none.\n"
    standings = ", ".join(f"`{standing}`" for standing in Standing)
    shape = [
        ("machine", "text", "the name"),
        ("node", "text or null", "sstNode"),
        ("standing", "text", f"one of {standings}"),
        ("last_success", "time or null", "timestamp of the newest good backup, such as `20260131T235959Z`"),
        ("age_seconds", "number or null", "how long ago that was"),
        ("size_bytes", "number or null", "size of its set"),
        ("downtime_seconds", "number or null", "how long the guest stood still for it"),
        (
            "running",
            "object or null",
            "the leaf in flight: `timestamp`, `mode`, `percent` or null, `attempts`, `bandwidth` (MiB/s) or null",
        ),
        (
            "failed",
            "object or null",
            "the newest failure since the last success: `timestamp`, `mode`, `at`, `return_value`, `meaning`, `message` "
            "or null",
        ),
        ("trouble", "text or null", "why the machine's plan cannot be read"),
        ("late", "true or false", "whether the snapshot of a leaf in flight is not made although its window is over"),
        ("group", "text or null", "the group that the last success was saved with"),
        ("group_consistency", "text or null", "`consistent`, or `inconsistent:` and why; null where nobody judged"),
        (
            "group_spread_seconds",
            "number or null",
            "from the first instant of the group to the last, by the nodes' clocks",
        ),
        ("broken_promise", "text or null", "what `vmkeepPromise` of the plan promises and is not so"),
        ("not_covered", "text or null", "why no plan backs the machine up"),
    ]
    yield from _table(("key", "type", "meaning"), [(f"`{key}`", kind, meaning) for key, kind, meaning in shape])


def _plan_notes() -> Iterator[str]:
    yield "\n#### The shape of `vmkeep plan --json`\n"
    yield (
        "Without a machine, the object below. Of one machine: `machine`, `left_out`, `plan` (value and origin by attribute), "
        "and `schedule`, which is the object below. Keys are only ever added.\n"
    )
    whys = ", ".join(f"`{why}`" for why in (*Why, *outlook.Delay))
    shape = [
        ("from, until", "time", "what is looked at"),
        ("timezone", "text", "zone of the cron fields"),
        ("starts: slot", "time", "the planned time, which names the leaves"),
        ("starts: local", "text", "the same on the cluster's clock"),
        ("starts: at_once", "true or false", "whether it has passed without a leaf, and is started now"),
        ("starts: machines", "list", "the machines that start then"),
        ("absences: machine", "text", "a machine that does not start"),
        ("absences: why", "text", f"one of {whys}"),
        ("absences: sentence", "text", "the reason, with the entry to change"),
    ]
    yield from _table(("key", "type", "meaning"), [(f"`{key}`", kind, meaning) for key, kind, meaning in shape])


def _controllers_notes() -> Iterator[str]:
    yield "\n#### The shape of `vmkeep controllers --json`\n"
    yield "One object. Keys are only ever added.\n"
    shape = [
        ("holder", "text or null", "the controller that has the lease, as name:process:token"),
        ("epoch", "number", "number of its tenure; each new one is greater"),
        ("since", "time or null", "when it got the lease, by its own clock"),
        ("renewed_seconds_ago", "number or null", "when it last said so: the directory's clock against this host's"),
        ("holds_seconds", "number", "how long a renewal holds (`lease_seconds`)"),
        ("acts", "true or false", "whether it has the lease and seems to renew it; the exit code says the same"),
    ]
    yield from _table(("key", "type", "meaning"), [(f"`{key}`", kind, meaning) for key, kind, meaning in shape])


def _restore_notes() -> Iterator[str]:
    yield "\n#### Exit codes of `vmkeep restore` and `vmkeep delete`\n"
    rows = [
        (str(restore.RESTORED), "the machine is restored; the backup is deleted"),
        (
            str(restore.FAILED),
            "a step failed, with its return value and message; or it was refused and nothing was written",
        ),
        (str(USAGE), "wrong usage, or settings that cannot be used"),
        (
            str(restore.UNTOUCHED),
            "ended before anything was touched: declined, `--diff`, interrupted, time up, or nobody there to ask; what "
            "was said last tells whether the restore still waits",
        ),
    ]
    yield from _table(("code", "meaning"), rows)
    yield (
        "\n"
        + _prose(
            "`vmkeep restore` writes what an admin could write with `ldapmodify`: `unretainSmallFiles` with the wishes, "
            "`unretainLargeFiles` after the decision, or `finished` to back out. Everything else is done by agent and "
            "controller, whether the command still follows or not. Called for a machine whose restore waits, it goes on "
            "with that."
        ).rstrip()
    )


def _prune_notes() -> Iterator[str]:
    yield "\n#### The shape of `vmkeep prune --json`\n"
    yield "An object with the list `machines`. Keys are only ever added; null means: none.\n"
    shape = [
        ("machine", "text", "the name"),
        ("trouble", "text or null", "why its plan says not what to keep; then `backups` is empty"),
        ("backups: timestamp", "time", "of the backup, newest first"),
        ("backups: mode, return_value", "text, number", "of its leaf, as read"),
        ("backups: goes", "true or false", "whether the plan lets it go now"),
        ("backups: reasons", "list", "every reason why it stays, or why it goes"),
        ("backups: hold", "text or null", "`vmkeepHold`, also one that has run out"),
    ]
    yield from _table(("key", "type", "meaning"), [(f"`{key}`", kind, meaning) for key, kind, meaning in shape])


def _sets_notes() -> Iterator[str]:
    yield "\n#### The shape of `vmkeep sets --json`\n"
    yield "An object with `root`, the list `sets`, and the list `no_sets`. Keys are only ever added.\n"
    shape = [
        ("sets: machine", "text", "the name"),
        ("sets: timestamp", "time", "of the backup, such as `20260131T235959Z`"),
        ("sets: power", "text", "what the machine was doing: " + ", ".join(f"`{power}`" for power in Power)),
        ("sets: consistency", "text", "how the disks were brought to one instant: " + _words(Consistency)),
        ("sets: size_bytes", "number", "of all files together, by the manifest"),
        ("sets: node", "text", "where the machine was"),
        ("sets: directory", "text", "where the set lies, as seen from here"),
        ("sets: manifest_digest", "text", "BLAKE3 of the manifest's text, as in `vmkeepManifestDigest`"),
        ("no_sets: directory", "text", "a directory that holds no set, or cannot be read"),
        ("no_sets: reason", "text", "why"),
    ]
    yield from _table(("key", "type", "meaning"), [(f"`{key}`", kind, meaning) for key, kind, meaning in shape])


def _words(literal: Any) -> str:
    return ", ".join(f"`{word}`" for word in get_args(literal))


# planted bugs


def _planted_bugs() -> Iterator[str]:
    yield "# Planted bugs\n"
    yield _prose(
        "A test that cannot fail is worse than none. `make planted-bugs` copies the project, plants one of these bugs in the "
        "copy, and runs the tests named beside it: without the bug all of them are green, with it every one has to turn red. It "
        "ends with 1 where a bug survives."
    )
    for bug in BUGS:
        yield f"## {bug.name}\n"
        yield _prose(bug.cost)
        yield f"Planted in {', '.join(sorted({f'`{edit.file}`' for edit in bug.edits}))}; caught by:\n"
        yield from (f"- `{test}`" for test in bug.tests)
        yield ""


def _prose(text: str) -> str:
    return textwrap.fill(text, 118, break_on_hyphens=False) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in row)} |"


if __name__ == "__main__":
    main()
