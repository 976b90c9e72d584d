"""Settings of the three programs, read from TOML; the reference page and the sample files are generated from here.

`load` is called once, by each command line; everything below gets the frozen value. Unknown keys are refused.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.directory.settings import DirectorySettings

DEFAULT_DIRECTORY = Path("/etc/vmkeep")
CONTROLLER_FILE = DEFAULT_DIRECTORY / "controller.toml"
NODE_AGENT_FILE = DEFAULT_DIRECTORY / "nodeagent.toml"
CONSOLE_FILE = DEFAULT_DIRECTORY / "vmkeep.toml"

Model = TypeVar("Model", bound=BaseModel)


class SettingsError(Refused):
    """A settings file cannot be used; the sentence names file, key, value and what is allowed."""


def _absolute(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts:
        raise ValueError("an absolute path without '..' is needed")
    return str(pure)


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError("a time zone of the tz database is needed, such as UTC or Europe/Zurich") from None
    return name


def _node_name(name: str) -> str:
    if not name or name != name.strip() or "," in name:
        raise ValueError("the node's name is needed, exactly as sstNode has it")
    return name


def _holder_name(name: str) -> str:
    if not name.isascii() or not name.isprintable() or not name.strip() or ":" in name:
        raise ValueError("a short name of plain letters is needed, without ':', such as the host's")
    return name


def _host_and_port(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("HOST:PORT is needed, such as 127.0.0.1:9750")
    return address


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Bandwidth = Annotated[int, Field(ge=1, le=999_999_999)]
AbsolutePaths = Annotated[tuple[AbsolutePath, ...], Field(min_length=1)]


class Section(BaseModel):
    """What all parts of a settings file have in common: frozen, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LogSettings(Section):
    """How a program says what it does. Goes to stderr."""

    form: Literal["console", "json"] = Field(
        default="console", description="console: for people, json: for a collector"
    )
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is written")
    file: AbsolutePath | None = Field(default=None, description="where a daemon started with --daemon appends its log")


class MetricsSettings(Section):
    """Counters for Prometheus."""

    listen: Annotated[str, AfterValidator(_host_and_port)] | None = Field(
        default=None, description="HOST:PORT that answers GET /metrics; off when not set"
    )


class BudgetSettings(Section):
    """How much of one kind of work at once, all nodes together; what is not set is not limited."""

    overall: PositiveInt | None = Field(default=None, description="in the whole cluster")
    per_node: PositiveInt | None = Field(default=None, description="on one node")
    per_root: PositiveInt | None = Field(
        default=None, description="into one backup root, by what the plans have in sstBackupRootDirectory"
    )


class PacedBudgetSettings(BudgetSettings):
    """How much of one kind of work at once, and how fast all of it together, in MiB/s: each gets an even share."""

    bandwidth_overall: Bandwidth | None = Field(default=None, description="MiB/s of all together; needs `overall`")
    bandwidth_per_node: Bandwidth | None = Field(
        default=None, description="MiB/s of all on one node together; needs `per_node`"
    )
    bandwidth_per_root: Bandwidth | None = Field(
        default=None, description="MiB/s of all into one backup root together; needs `per_root`"
    )

    @model_validator(mode="after")
    def _has_a_share_for_each(self) -> Self:
        for place in BudgetSettings.model_fields:
            number, bandwidth = getattr(self, place), getattr(self, f"bandwidth_{place}")
            if bandwidth is not None and number is None:
                raise ValueError(
                    f"bandwidth_{place} is divided among as many as may be at work at once: set {place} too"
                )
            if bandwidth is not None and bandwidth < number:
                raise ValueError(
                    f"bandwidth_{place} is less than 1 MiB/s for each of {place}: raise it to {number} or more, "
                    f"or lower {place}"
                )
        return self


class BudgetsSettings(Section):
    """Limits of what the controller asks for."""

    snapshots: BudgetSettings = Field(default=BudgetSettings(), description="snapshots at once")
    merges: PacedBudgetSettings = Field(default=PacedBudgetSettings(), description="merges at once, and how fast")
    retains: PacedBudgetSettings = Field(default=PacedBudgetSettings(), description="retains at once, and how fast")


class ControllerSettings(Section):
    """Settings of vmkeep-controller."""

    directory: DirectorySettings = Field(description="the directory and how to reach it")
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        default="UTC",
        description="time zone of the cron fields in the plans",
    )
    snapshot_deadline_seconds: PositiveFloat = Field(
        default=600, description="how long the machines of one run wait for a slow snapshot before they are merged"
    )
    take_up_seconds: PositiveFloat = Field(
        default=300,
        description="how long a snapshot, or a restore nobody began, may stand asked for before it is ended",
    )
    attempts: int = Field(default=3, ge=0, description="how often a failed merge or retain is asked for again")
    back_off_seconds: PositiveFloat = Field(
        default=60, description="wait before a failed step is asked for again; doubles with each attempt"
    )
    run_timeout_seconds: PositiveFloat = Field(
        default=86400, description="how long `run` waits for its leaves to end, unless --timeout says otherwise"
    )
    reconcile_seconds: PositiveFloat = Field(
        default=30, description="a fresh look at everything at least this often, whatever the watch noticed"
    )
    budgets: BudgetsSettings = Field(default=BudgetsSettings(), description="how much at once")
    lease_seconds: PositiveFloat = Field(
        default=30,
        description="of several controllers that serve one acts; after its death the others wait a quarter longer "
        "than this",
    )
    holder_name: Annotated[str, AfterValidator(_holder_name)] | None = Field(
        default=None, description="how this controller is called in the lease; when not set: the host's name"
    )
    logs: LogSettings = Field(default=LogSettings(), description="the log")
    metrics: MetricsSettings = Field(default=MetricsSettings(), description="counters")


class LimitSettings(Section):
    """How many machines an agent works on at once, for each kind of work."""

    snapshots: PositiveInt = Field(default=2, description="snapshots at once")
    merges: PositiveInt = Field(default=2, description="merges at once")
    retains: PositiveInt = Field(default=2, description="retains at once")
    restores: PositiveInt = Field(default=2, description="restores at once")
    deletions: PositiveInt = Field(default=2, description="deletions at once")


class NodeAgentSettings(Section):
    """Settings of vmkeep-nodeagent."""

    node: Annotated[str, AfterValidator(_node_name)] = Field(
        description="this node's name, exactly as the machines' sstNode has it"
    )
    directory: DirectorySettings = Field(description="the directory and how to reach it")
    libvirt_uri: str = Field(default="qemu:///system", description="the hypervisor this agent works with")
    image_roots: AbsolutePaths = Field(
        default=("/var/virtualization",), description="below these lie <vmtype>/<storage pool>/… of the disk images"
    )
    allowed_roots: AbsolutePaths = Field(
        default=("/var/virtualization", "/var/backup", "/mnt"),
        description="backup, retain and RAM disk directories of a plan must lie below one of these",
    )
    state_directory: AbsolutePath = Field(
        default="/var/lib/vmkeep", description="the agent's journal; must survive a restart of the node"
    )
    libvirt_state_directory: AbsolutePath = Field(
        default="/var/lib/libvirt", description="where libvirt keeps NVRAM files and virtual TPMs"
    )
    nvram_roots: AbsolutePaths | None = Field(
        default=None,
        description="NVRAM files must lie below one of these; when not set: qemu/nvram below libvirt_state_directory, "
        "and the image roots",
    )
    readable_roots: AbsolutePaths = Field(
        default=(
            "/usr/share/OVMF",
            "/usr/share/ovmf",
            "/usr/share/AAVMF",
            "/usr/share/edk2",
            "/usr/share/edk2-ovmf",
            "/usr/share/qemu",
            "/usr/share/seabios",
            "/usr/share/qemu-efi-aarch64",
            "/var/lib/libvirt/boot",
            "/var/lib/libvirt/images",
        ),
        description="firmware, kernels and read-only media that a restored machine names must lie below one of these; "
        "read-only media may lie below the image roots too",
    )
    writable_roots: AbsolutePaths = Field(
        default=("/var/log/libvirt", "/var/lib/libvirt/qemu/channel", "/run/libvirt/qemu"),
        description="log files and sockets that a restored machine names must lie below one of these",
    )
    emulators: AbsolutePaths = Field(
        default=(
            "/usr/bin/qemu-system-x86_64",
            "/usr/bin/qemu-system-i386",
            "/usr/bin/qemu-system-aarch64",
            "/usr/bin/qemu-kvm",
            "/usr/bin/kvm",
            "/usr/libexec/qemu-kvm",
        ),
        description="the programs that a restored machine may be run by",
    )
    limits: LimitSettings = Field(default=LimitSettings(), description="how much at once")
    qemu_img_seconds: PositiveFloat = Field(default=60, description="time limit of a qemu-img call that copies no data")
    libvirt_seconds: PositiveFloat = Field(
        default=60, description="longest wait for a libvirt daemon that does not answer, while connecting or later"
    )
    data_seconds: PositiveFloat = Field(
        default=86400, description="time limit of a step that moves data: save, restore, merge, copy"
    )
    reconcile_seconds: PositiveFloat = Field(
        default=30, description="a fresh look at everything at least this often, whatever the watch noticed"
    )
    progress_seconds: Annotated[float, Field(ge=1)] = Field(
        default=5, description="least time between two progress writes of one leaf"
    )
    silent_seconds: PositiveFloat = Field(
        default=600, description="work that shows no progress for so long is told of: in the log and on its leaf"
    )
    check_seconds: PositiveFloat = Field(
        default=60, description="how long `check` waits for one answer, as of a mount that hangs"
    )
    logs: LogSettings = Field(default=LogSettings(), description="the log")
    metrics: MetricsSettings = Field(default=MetricsSettings(), description="counters")

    @property
    def effective_nvram_roots(self) -> tuple[str, ...]:
        """Where NVRAM files may lie: as set, or libvirt's own place and the image roots."""
        return self.nvram_roots or (f"{self.libvirt_state_directory}/qemu/nvram", *self.image_roots)


class ConsoleSettings(Section):
    """Settings of vmkeep, the admin's command line."""

    directory: DirectorySettings = Field(description="the directory and how to reach it")
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        default="UTC", description="time zone of the cron fields in the plans; the same as the controller's"
    )


def load(model: type[Model], path: Path) -> Model:
    """Read and check one settings file; SettingsError names every wrong key at once, one a line."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as why:
        raise _refusal(
            f"the settings file {path} cannot be read: {why.strerror}; name another with --settings FILE"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise _refusal(f"the settings file {path} is not TOML: {why}") from None
    try:
        return model.model_validate(values)
    except ValidationError as why:
        raise _refusal("\n".join(_sentence(path, model, dict(error)) for error in why.errors())) from None


def _refusal(sentence: str) -> SettingsError:
    return SettingsError(ReturnValue.UNSUPPORTED_PARAMETER, sentence)


def _sentence(path: Path, model: type[BaseModel], error: Mapping[str, Any]) -> str:
    place = tuple(str(part) for part in error["loc"])
    key = ".".join(place)
    if error["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(model, place[:-1]))
        return f"{path}: the key {key} is not known; known there: {known}"
    if error["type"] == "missing":
        return f"{path}: the key {key} is missing; it must be set"
    allowed = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {key} is {_shown(key, error['input'])}: {allowed}" if key else f"{path}: {allowed}"


def _shown(key: str, value: object) -> str:
    # A password typed into the file by mistake must not reach a terminal or a log.
    return "(not shown)" if "password" in key and "file" not in key else repr(value)


def _known_keys(model: type[BaseModel], place: tuple[str, ...]) -> list[str]:
    for part in place:
        field = model.model_fields.get(part)
        section = field and _section_of(field.annotation)
        if not section:
            return []
        model = section
    return list(model.model_fields)


def _section_of(annotation: object) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)
