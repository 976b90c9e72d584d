"""What the documentation names exists: links, files, commands, options, numbers, attributes, settings, floors."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import controller.cli
import nodeagent.cli
import vmkeep.console.cli
from lab.__main__ import _parser as lab_parser
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.names import OIDS
from vmkeep.directory.settings import DirectorySettings
from vmkeep.service.settings import BudgetsSettings, ControllerSettings, NodeAgentSettings

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "ldif/edits/README.md",
]
UNITS = sorted((ROOT / "systemd").glob("*.service"))
PROGRAMS = {
    "vmkeep": typer.main.get_command(vmkeep.console.cli.app),
    "vmkeep-controller": typer.main.get_command(controller.cli.app),
    "vmkeep-nodeagent": typer.main.get_command(nodeagent.cli.app),
}
OPTIONS_OF_OTHERS = {"--xml"}  # of virsh

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(
    r"(?<![\w./<>…-])((?:ldif|schema|systemd|lab|docs|tests|vmkeep|controller|nodeagent|bench)/[\w./*-]*\w|\.ci/run)"
)
NAME = re.compile(r"\b(sst[A-Z]\w+|vmkeep[A-Z]\w+)")
SEPARATORS = re.compile(r"&&|\||;|(?:^|\s)--\s|#")
CRON_FIELDS = re.compile(r"^(?:[\d*/,-]+\s+){5}\w+\s+")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fragments(text: str) -> Iterator[str]:
    """Every piece of code: lines of blocks, with continued ones joined, and what stands between backticks."""
    for kind, block in FENCE.findall(text):
        if kind == "text":  # a picture
            continue
        yield from block.replace("\\\n", " ").splitlines()
    yield from CODE.findall(FENCE.sub("", text))


def commands(fragment: str) -> Iterator[list[str]]:
    """The commands of one line, as words."""
    for part in SEPARATORS.split(CRON_FIELDS.sub("", fragment.strip().removeprefix("$ "))):
        try:
            words = shlex.split(part)
        except ValueError:  # a sentence or half a quotation, no command
            continue
        if words:
            yield [words[0].rpartition("/")[2], *words[1:]]


def check_command(program: str, words: list[str]) -> None:
    """Options and subcommand of one call are known."""
    known: Any = PROGRAMS[program]
    options = {name for option in known.params for name in option.opts} | {"--help"}
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            assert word in options, f"{program} {' '.join(words)}: {word} is not known"
            if word == "--settings":
                next(rest, None)
        elif hasattr(known, "commands"):
            assert word in known.commands, f"{program} {' '.join(words)}: there is no command {word}"
            known = known.commands[word]
            options |= {name for option in known.params for name in option.opts}


@pages
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(FENCE.sub("", page.read_text()))]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pages
def test_every_path_named_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text()))
    assert [path for path in named if not any(ROOT.glob(path))] == []


@pages
def test_every_command_and_option_named_exists(page: Path) -> None:
    for fragment in fragments(page.read_text()):
        for program, *words in commands(fragment):
            if program in PROGRAMS:
                check_command(program, words)
            elif program.startswith("python") and words[:2] == ["-m", "lab"] and len(words) > 2:
                lab_parser().parse_args(words[2:])


def test_every_option_named_alone_exists() -> None:
    known = set(OPTIONS_OF_OTHERS)
    for command in (
        one for program in PROGRAMS.values() for one in (program, *getattr(program, "commands", {}).values())
    ):
        known |= {name for option in command.params for name in option.opts}
    [subcommands] = [action for action in lab_parser()._actions if action.choices]
    known |= {name for parser in subcommands.choices.values() for name in parser._option_string_actions}
    named = {
        (page.name, span.split()[0])
        for page in PAGES
        for span in CODE.findall(FENCE.sub("", page.read_text()))
        if span.startswith("--")
    }
    assert {(page, option) for page, option in named if option not in known} == set()


@pages
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    calls = [fragment.split()[1:] for fragment in fragments(page.read_text()) if fragment.startswith("make ")]
    assert [word for words in calls for word in words if word not in targets] == []


@pages
def test_every_return_value_named_means_what_is_said(page: Path) -> None:
    text = page.read_text()
    for number, meaning in re.findall(r"[Rr]eturn value (\d+)(?: \(([^)]*)\))?", text):
        assert not meaning or ReturnValue(int(number)).meaning == meaning
        assert int(number) in set(ReturnValue)
    for number, meaning in re.findall(r"^\| (\d+) \| ([^|]+) \|[^|]+\|$", text, re.MULTILINE):
        if page.name == "read-a-failed-leaf.md":
            assert ReturnValue(int(number)).meaning == meaning


@pages
def test_every_attribute_and_class_named_is_in_the_schema(page: Path) -> None:
    schema = "".join(path.read_text() for path in (ROOT / "schema").glob("*.schema"))
    known = set(re.findall(r"'(\w+)'", schema))
    assert set(NAME.findall(page.read_text())) - known == set()


def test_sample_settings_are_accepted() -> None:
    seen = set()
    for page in PAGES:
        for block in (block for kind, block in FENCE.findall(page.read_text()) if kind == "toml"):
            values = tomllib.loads(block)
            if "node" in values:
                seen.add(NodeAgentSettings.model_validate(values).__class__)
            elif "directory" in values:
                seen.add(ControllerSettings.model_validate(values).__class__)
            elif "budgets" in values:
                BudgetsSettings.model_validate(values["budgets"])
            elif page.parent.name == "how-to":
                assert set(values) <= set(DirectorySettings.model_fields)
    assert seen == {NodeAgentSettings, ControllerSettings}


def test_the_check_shown_counts_what_the_schema_has() -> None:
    shown = (ROOT / "docs/how-to/install-controller.md").read_text()
    assert f"the schema has all {len(OIDS)} attributes and classes" in shown


def test_the_floors_shown_are_the_floors_that_are_held() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    shown = re.sub(" +", " ", (ROOT / "docs/architecture.md").read_text())
    for contract in (one for one in contracts if one["type"] == "layers"):
        package = contract["layers"][0].partition(".")[0]
        # In parentheses stand floors that need not exist yet.
        floors = [re.findall(r"(?<!\()\b\w+\.(\w+)(?!\w*\))", layer) for layer in contract["layers"]]
        line = f"{package} {' > '.join(', '.join(names) for names in floors if names)}"
        assert line in shown


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_commands_that_exist_and_wait_for_their_word(unit: Path) -> None:
    text = unit.read_text()
    [start] = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    [(program, *words)] = commands(start)
    assert program == unit.stem
    assert words[-1] == "serve"
    check_command(program, words)
    assert "\nType=notify\n" in text


def test_there_is_a_unit_for_each_daemon() -> None:
    assert [unit.stem for unit in UNITS] == ["vmkeep-controller", "vmkeep-nodeagent"]
