"""No shell, no program by a relative name, one door to programs: read from the code itself."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.host import programs
from nodeagent.host.errors import HostFailure
from nodeagent.host.programs import run

REPOSITORY = Path(__file__).parent.parent.parent
PRODUCT = [path for part in ("vmkeep", "controller", "nodeagent") for path in sorted((REPOSITORY / part).rglob("*.py"))]
DOOR = REPOSITORY / "nodeagent/host/programs.py"
STARTS_PROGRAMS = {"subprocess", "pty", "multiprocessing", "pexpect", "sh", "commands", "popen2"}
RUNS_TEXT = {"pickle", "marshal", "shelve", "code", "codeop", "runpy"}
OF_OS = ("system", "popen", "exec", "spawn", "posix_spawn", "fork")
OF_ASYNCIO = ("create_subprocess_shell", "create_subprocess_exec")
BUILT_IN = ("eval", "exec", "compile", "__import__")


def misdeeds(tree: ast.AST) -> Iterator[str]:
    """Every way out that Python has, found by names: of modules, of their functions, of arguments."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (f"imports {name.name}" for name in names if _is_bad_module(name.name))
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"imports {module}" for _ in names[:1] if _is_bad_module(module))
                yield from (f"takes {name.name} from {module}" for name in names if _is_way_out(module, name.name))
            case ast.Attribute(value=ast.Name(id=module), attr=name) if _is_way_out(module, name):
                yield f"calls {module}.{name}"
            case ast.Call(func=ast.Name(id=name)) if name in BUILT_IN:
                yield f"calls {name}"
            case ast.keyword(arg="shell" | "executable" | "preexec_fn" as name):
                yield f"gives {name}="


def _is_bad_module(name: str) -> bool:
    return name.split(".")[0] in STARTS_PROGRAMS | RUNS_TEXT


def _is_way_out(module: str, name: str) -> bool:
    return (module == "os" and name.startswith(OF_OS)) or (module == "asyncio" and name in OF_ASYNCIO)


def test_no_module_has_a_way_to_a_program_but_the_door() -> None:
    assert len(PRODUCT) > 80
    found = {path: told for path in PRODUCT if (told := list(misdeeds(ast.parse(path.read_text()))))}
    assert found == {DOOR: ["imports subprocess"]}


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess",
        "import subprocess as harmless",
        "from subprocess import run",
        "import os; os.system('ls')",
        "from os import popen as harmless",
        "os.execvp('ls', [])",
        "os.posix_spawn('ls', [], {})",
        "door.run('ls', shell=True)",
        "asyncio.create_subprocess_shell('ls')",
        "import multiprocessing.pool",
        "import pickle",
        "eval('1')",
    ],
)
def test_each_way_out_is_noticed(line: str) -> None:
    assert list(misdeeds(ast.parse(line)))


def test_a_program_gets_its_arguments_as_they_are_and_nothing_of_our_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/tmp/evil.so")
    monkeypatch.setenv("VMKEEP_SECRET", "canary")
    assert run("env", [], 10).split() == ["PATH=/usr/bin:/usr/sbin", "LC_ALL=C", "HOME=/nonexistent"]
    made = tmp_path / "made"
    assert run("printf", ["%s|", f"$(touch {made})", f"; touch {made}", "*"], 10) == (
        f"$(touch {made})|; touch {made}|*|"
    )
    assert not made.exists()


def test_a_program_is_found_in_its_places_alone_whatever_the_path_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evil = tmp_path / "qemu-img"
    evil.write_text("#!/bin/sh\necho evil\n")
    evil.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "evil" not in run("qemu-img", ["--version"], 10)
    evil.rename(tmp_path / "vmkeep-no-such-program")
    with pytest.raises(HostFailure, match="is not installed"):
        run("vmkeep-no-such-program", [], 10)


def test_the_places_of_programs_are_absolute() -> None:
    assert all(place.is_absolute() for place in programs._PLACES)


def test_a_program_inherits_no_descriptor_of_ours() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        assert str(writing) not in run("ls", ["/proc/self/fd"], 10).split()
    finally:
        os.close(reading)
        os.close(writing)
