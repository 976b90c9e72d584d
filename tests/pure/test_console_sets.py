"""What `vmkeep sets` finds in a backup root, and what it does not let itself be led to."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.backup_root import PLACE, digest, make_set, manifest_of
from vmkeep.console.cli import app
from vmkeep.console.sets import find, read_ldif
from vmkeep.contract.errors import Refused
from vmkeep.contract.timestamps import to_timestamp

AT = "20260101T000000Z"
LATER = "20260102T000000Z"
MANIFEST = f"manifest.json.{AT}"


def test_sets_are_found_by_machine_and_time_with_what_their_manifests_say(tmp_path: Path) -> None:
    for machine, timestamp in (("web", LATER), ("db", AT), ("web", AT)):
        make_set(tmp_path, machine, timestamp)
    found = find(tmp_path)
    assert [(one.manifest.machine, one.manifest.timestamp) for one in found.sets] == [
        *(("db", AT), ("web", AT)),
        ("web", LATER),
    ]
    assert found.no_sets == ()
    first = found.sets[0]
    assert first.directory == tmp_path / PLACE / "db" / AT
    assert first.digest == digest((first.directory / MANIFEST).read_bytes())


def test_one_machine_alone_is_found_in_every_storage_pool(tmp_path: Path) -> None:
    make_set(tmp_path, "web", AT)
    make_set(tmp_path, "web", LATER, place="vm-templates/pool-02")
    make_set(tmp_path, "db", AT)
    assert [one.manifest.timestamp for one in find(tmp_path, "web").sets] == [AT, LATER]


def test_a_thousand_sets_are_found(tmp_path: Path) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(1000):
        make_set(tmp_path, f"m{number // 10}", to_timestamp(start + timedelta(hours=number % 10)))
    found = find(tmp_path)
    assert (len(found.sets), len(found.no_sets)) == (1000, 0)


def test_what_has_no_place_in_the_layout_is_passed_over(tmp_path: Path) -> None:
    folder = make_set(tmp_path, "web", AT)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").write_text("x")
    (folder.parent / "notes").mkdir()
    (folder.parent / "20260199T000000Z").mkdir()
    make_set(tmp_path / "elsewhere", "web", LATER)
    found = find(tmp_path)
    assert ([one.directory for one in found.sets], found.no_sets) == ([folder], ())


def _nothing(_folder: Path) -> None:
    pass


def _text(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / MANIFEST).write_text(text) and None


def _link(folder: Path) -> None:
    (folder / "elsewhere").write_text(manifest_of("web", AT).to_json())
    (folder / MANIFEST).symlink_to("elsewhere")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / MANIFEST)


def _huge(folder: Path) -> None:
    (folder / MANIFEST).write_text(manifest_of("web", AT).to_json())
    os.truncate(folder / MANIFEST, 5 << 20)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_nothing, f"holds no {MANIFEST}: it was never finished, or is being made or removed"),
        (_text("{"), f"{MANIFEST} is no manifest: Invalid JSON"),
        (_text("{}"), f"{MANIFEST} is no manifest: machine: Field required"),
        (_text(manifest_of("db", AT).to_json()), f"{MANIFEST} is of another place: it says db at {AT}"),
        (_text(manifest_of("web", LATER).to_json()), f"{MANIFEST} is of another place: it says web at {LATER}"),
        (
            _text(manifest_of("web", AT).to_json().replace('"web"', '"../web"')),
            "the machine name '../web' is not allowed",
        ),
        (_text(manifest_of("web", AT).to_json().replace('"format": 1', '"format": 2')), "is no manifest: format"),
        (_link, f"{MANIFEST} cannot be read: "),
        (_pipe, f"{MANIFEST} is no plain file"),
        (_huge, f"{MANIFEST} is larger than 4 MiB"),
    ],
)
def test_a_directory_without_a_readable_manifest_is_told_with_its_reason(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / PLACE / "web" / AT
    folder.mkdir(parents=True)
    make(folder)
    found = find(tmp_path)
    assert found.sets == ()
    [told] = found.no_sets
    assert told.directory == folder
    assert reason in told.reason


@pytest.mark.parametrize("level", range(4))
def test_symbolic_links_are_not_followed(tmp_path: Path, level: int) -> None:
    make_set(tmp_path / "other", "web", AT)
    parts = [*PLACE.split("/"), "web", AT]
    target = tmp_path.joinpath("other", *parts[: level + 1])
    link = tmp_path.joinpath("root", *parts[: level + 1])
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    found = find(tmp_path / "root")
    assert (found.sets, found.no_sets) == ((), ())


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"the backup root .*nosuch cannot be read: No such file"):
        find(tmp_path / "nosuch")


def test_the_entry_of_a_set_is_read_when_its_digest_is_the_manifests(tmp_path: Path) -> None:
    make_set(tmp_path, "web", AT, b"dn: \xc3\xa9\n")
    [one] = find(tmp_path).sets
    assert read_ldif(one) == "dn: é\n"


@pytest.mark.parametrize("spoil", ["flip", "remove", "link"])
def test_an_entry_that_is_not_the_manifests_is_refused(tmp_path: Path, spoil: str) -> None:
    folder = make_set(tmp_path, "web", AT)
    path = folder / f"web.ldif.{AT}"
    if spoil == "flip":
        path.write_bytes(b"dn: y\n")
    else:
        path.rename(folder / "aside")
        if spoil == "link":
            path.symlink_to("aside")
    [one] = find(tmp_path).sets
    with pytest.raises(Refused, match=rf"web: the set {folder}.* web\.ldif\.{AT} "):
        read_ldif(one)


def test_the_command_needs_no_settings_and_prints_the_documented_shape(tmp_path: Path) -> None:
    folder = make_set(tmp_path, "web", AT)
    (tmp_path / PLACE / "web" / LATER).mkdir()
    ended = CliRunner().invoke(app, ["--settings", "/nosuch", "sets", str(tmp_path), "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout) == {
        "root": str(tmp_path),
        "sets": [
            {
                "machine": "web",
                "timestamp": AT,
                "power": "running",
                "consistency": "state",
                "size_bytes": (1 << 30) + 6,
                "node": "n1",
                "directory": str(folder),
                "manifest_digest": digest((folder / MANIFEST).read_bytes()),
            }
        ],
        "no_sets": [
            {
                "directory": str(folder.parent / LATER),
                "reason": f"holds no manifest.json.{LATER}: it was never finished, or is being made or removed",
            }
        ],
    }


def test_the_command_prints_a_line_a_set_and_says_what_is_none(tmp_path: Path) -> None:
    folder = make_set(tmp_path, "web", AT)
    (tmp_path / PLACE / "web" / LATER).mkdir()
    ended = CliRunner().invoke(app, ["sets", str(tmp_path)])
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert lines[1:] == [f"web {AT} running state 1.0 GiB n1 {folder}", "1 sets of 1 machines"]
    assert ended.stderr.startswith(f"no set: {folder.parent / LATER} holds no manifest")
