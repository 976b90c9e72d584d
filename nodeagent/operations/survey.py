"""Looks before anything is touched: turns a leaf into an order, or refuses with the return value and the mend.

Reads the directory, libvirt and the filesystem; writes nothing. One survey a mode; called by the cycle in a worker.
"""

import grp
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from nodeagent.host.description import Description, XmlDisk, with_sources
from nodeagent.host.errors import HostFailure
from nodeagent.host.folders import names_in, open_folder, root_of
from nodeagent.host.hypervisor import View
from nodeagent.host.qcow2 import Header
from nodeagent.moves import moved
from nodeagent.operations.choosing import as_made, chosen
from nodeagent.operations.deletion_survey import refuse_if_in_use, survey_deletion
from nodeagent.operations.finding import find_set
from nodeagent.operations.following import refuse_unseen_set, to_be_merged
from nodeagent.operations.given_up import given_up
from nodeagent.operations.in_use import refuse_if_written_elsewhere
from nodeagent.operations.overlays import image_below
from nodeagent.operations.restore_survey import survey_restore
from nodeagent.operations.room import choose_ram_disk, require_room, require_same_filesystem
from nodeagent.operations.roots import BACKUP, RETAIN, open_root
from nodeagent.operations.saved_machine import SavedMachine
from nodeagent.operations.unretain_survey import survey_large_files, survey_small_files
from nodeagent.order import Firmware, Order, OrderDisk, Ownership, Restoring
from nodeagent.restoring.allowed import AllowedPlaces, peculiarities
from nodeagent.steps import Host
from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.contract.leaf import Leaf
from vmkeep.contract.machine import DirectoryDisk, Machine, Power, check_name
from vmkeep.contract.modes import Mode
from vmkeep.contract.paths import MANIFEST_NAME, set_paths
from vmkeep.contract.plan import Plan, policy_of, resolve
from vmkeep.contract.timestamps import is_timestamp
from vmkeep.directory.catalogue import Catalogue
from vmkeep.directory.ldif_text import to_ldif


@dataclass(frozen=True)
class Rules:
    """What the local settings allow: roots as absolute paths."""

    allowed_roots: tuple[str, ...]
    image_roots: tuple[str, ...]
    nvram_roots: tuple[str, ...]
    libvirt_state: str
    restored: AllowedPlaces


@dataclass(frozen=True)
class Surveyor:
    """Makes orders."""

    catalogue: Catalogue
    host: Host
    rules: Rules

    def survey(self, leaf: Leaf, working: Mode) -> Order:
        """The order for one leaf that was claimed with a mode of work."""
        machine = self._machine(leaf)
        plan = resolve(machine.name, self.catalogue.plan_sources(machine))
        self._check_roots(machine.name, plan, working)
        surveys: dict[Mode, Callable[[Leaf, Machine, Plan], Order]] = {
            Mode.SNAPSHOTTING: self._snapshot,
            Mode.MERGING: self._merge,
            Mode.RETAINING: self._retain,
            Mode.UNRETAINING_SMALL_FILES: self._unretain_small_files,
            Mode.UNRETAINING_LARGE_FILES: self._unretain_large_files,
            Mode.RESTORING: self._restore,
            Mode.DELETING: self._delete,
        }
        return surveys[working](leaf, machine, plan)

    def _snapshot(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        view = self._view(machine.name)
        disks = self._consistent_disks(machine, view.description)
        refuse_if_written_elsewhere(machine.name, self.host, view, [path for _, path in disks])
        order = self._order(leaf, machine, plan, Mode.SNAPSHOTTING, disks)
        order = order.model_copy(
            update={
                "uuid": view.description.uuid,
                "power": view.power,
                "disks": tuple(self._checked_image(order, disk) for disk in order.disks),
                "firmware": self._firmware(order, view.description),
                "ldif": to_ldif(self.catalogue.subtree(machine.name)),
                "start_wait": leaf.start_wait,
                **given_up(self.catalogue, order, self.host, view.power),
            }
        )
        self._refuse_used_retain(order)
        if self._exists(order.paths.backup, f"{MANIFEST_NAME}.{leaf.timestamp}"):
            raise Refused(
                ReturnValue.WRONG_STATE_INFORMATION,
                f"{machine.name}: there is a set of {leaf.timestamp} already in {order.paths.backup}; add a new leaf",
            )
        require_same_filesystem(order, self.host.roots)
        order, why = chosen(order, plan.method, view.xml, self.host)
        memory = view.description.memory if order.has_memory else 0
        require_room(order, self.host.roots, memory)
        ram_disk, warning = choose_ram_disk(order, plan.ram_disk, self.host.roots, memory)
        peculiar = self._peculiar(order) if order.has_memory else None
        told = "; ".join(filter(None, (why, warning)))
        return order.model_copy(update={"ram_disk": ram_disk, "warning": told, "peculiar": peculiar})

    def _peculiar(self, order: Order) -> tuple[str, ...]:
        """As it will be saved: what an earlier backup left of overlays is gone by then."""
        images = {disk.target: disk.path for disk in order.disks}
        return peculiarities(with_sources(self.host.hypervisor.description_to_keep(order.machine), images))

    def _merge(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        self._view(machine.name)
        order = self._order(leaf, machine, plan, Mode.MERGING, self._directory_disks(machine))
        total = sum(self._header(machine.name, disk).virtual_size for disk in order.disks)
        return to_be_merged(as_made(order, self.host), leaf, self.host).model_copy(update={"bytes_total": total})

    def _retain(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        order = self._order(leaf, machine, plan, Mode.RETAINING, self._directory_disks(machine))
        published = self._exists(order.paths.backup, f"{MANIFEST_NAME}.{leaf.timestamp}")
        order = order.model_copy(update={"firmware": self._kept_firmware(order), "published": published})
        refuse_unseen_set(order, leaf, self.host)
        return order.model_copy(update={"bytes_total": self._length_in_retain(order)})

    def _unretain_small_files(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        blank = self._blank(leaf, machine, plan, Mode.UNRETAINING_SMALL_FILES)
        return survey_small_files(self.catalogue, self._saved(leaf, plan), blank)

    def _unretain_large_files(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        blank = self._blank(leaf, machine, plan, Mode.UNRETAINING_LARGE_FILES)
        images = [disk.source for disk in machine.disks if disk.source]
        return survey_large_files(self._saved(leaf, plan), blank, images)

    def _restore(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        saved = self._saved(leaf, plan)
        if not leaf.wishes.disks:
            self._consistent_disks(machine, saved.edited.description)
        return survey_restore(saved, self._blank(leaf, machine, plan, Mode.RESTORING), self.rules.libvirt_state)

    def _delete(self, leaf: Leaf, machine: Machine, plan: Plan) -> Order:
        sources = self.catalogue.plan_sources(machine)
        floor = 0 if leaf.wishes.delete_last else policy_of(machine.name, sources).floor
        directory = survey_deletion(self.catalogue, self.host, leaf, plan, floor)
        order = self._blank(leaf, machine, plan, Mode.DELETING)
        if directory is None:
            return order.model_copy(update={"restoring": Restoring(set_directory="")})
        update = {"restoring": Restoring(set_directory=str(directory)), "place": directory.parts[-4:-2]}
        order = order.model_copy(update=update)
        refuse_if_in_use(order, machine, self.host)
        return order

    def _saved(self, leaf: Leaf, plan: Plan) -> SavedMachine:
        found = find_set(leaf, plan.backup_root, self.host.roots)
        return SavedMachine(leaf, plan, found, self.host, self.rules.restored, self.catalogue.tree)

    # what they have in common

    def _machine(self, leaf: Leaf) -> Machine:
        check_name(leaf.machine)
        machine = self.catalogue.machine(leaf.machine)
        if machine is None:
            raise Refused(
                ReturnValue.CANNOT_FIND_MACHINE,
                f"{leaf.machine}: the directory shows no such machine (any more); it may be another node's by now",
            )
        if machine.node and machine.node.casefold() != self.host.node.casefold():
            raise moved(machine.name, self.host.node, machine.node)
        if machine.name != leaf.machine:
            raise Refused(
                ReturnValue.INVALID_NAME,
                f"{leaf.machine}: the entry's sstVirtualMachine says {machine.name!r}; "
                "it must be the value that names the entry, and the only one",
            )
        return machine

    def _order(self, leaf: Leaf, machine: Machine, plan: Plan, mode: Mode, disks: Sequence[tuple[str, str]]) -> Order:
        roots = (plan.retain_root, plan.backup_root)
        paths = set_paths(machine.name, leaf.timestamp, disks, roots, self.rules.image_roots)
        named = tuple(OrderDisk(target=target, path=path, kept=paths.disk(target)) for target, path in disks)
        return self._blank(leaf, machine, plan, mode).model_copy(update={"disks": named, "place": paths.parts})

    def _blank(self, leaf: Leaf, machine: Machine, plan: Plan, mode: Mode) -> Order:
        """What every order has."""
        return Order(
            leaf_dn=leaf.dn,
            machine=machine.name,
            timestamp=leaf.timestamp,
            mode=mode,
            uuid="",
            power=Power.OFF,
            disks=(),
            retain_root=plan.retain_root,
            backup_root=plan.backup_root,
            place=("", ""),
            files=_ownership(machine.name, plan, of_directories=False),
            directories=_ownership(machine.name, plan, of_directories=True),
            bandwidth=leaf.slowed(plan.bandwidth_merge),
            bandwidth_copy=leaf.slowed(plan.bandwidth_copy),
            overlay_limit=plan.overlay_limit,
            freeze_seconds=plan.freeze_seconds,
            started_at=self.host.wall_clock(),
            deadline=plan.deadline,
            node=self.host.node,
            boot=self.host.moves.boot,
        )

    def _view(self, name: str) -> View:
        view = self.host.hypervisor.look(name)
        if view is None:
            raise Refused(
                ReturnValue.CANNOT_FIND_MACHINE,
                f"{name}: libvirt on {self.host.node} knows no machine of this name; define it, or correct sstNode",
            )
        if view.moved_away:
            raise Refused(
                ReturnValue.WRONG_STATE_INFORMATION,
                f"{name} has moved away from {self.host.node}; set sstNode to the node it runs on now",
            )
        return view

    # roots

    def _check_roots(self, machine: str, plan: Plan, working: Mode) -> None:
        wanted = {RETAIN: plan.retain_root, BACKUP: plan.backup_root}
        for root, path in wanted.items():
            self._check_allowed(machine, root.attribute, path)
            if root is RETAIN or working is not Mode.MERGING:  # which asks for it only where it copies there
                with open_root(machine, root, path, self.host):
                    pass
        if plan.ram_disk is not None:
            self._check_allowed(machine, "sstBackupRamDiskLocation", plan.ram_disk)

    def _check_allowed(self, machine: str, attribute: str, path: str) -> None:
        if root_of(PurePosixPath(path), self.rules.allowed_roots) is None:
            raise Refused(
                ReturnValue.PATH_NOT_ALLOWED,
                f"{machine}: {attribute} names {path}, outside the roots that {self.host.node} allows: "
                f"{', '.join(self.rules.allowed_roots)} (allowed_roots in the agent's settings)",
            )

    # disks

    def _directory_disks(self, machine: Machine) -> list[tuple[str, str]]:
        return [(disk.target, _file_of(machine.name, disk)) for disk in machine.disks if disk.is_backed_up]

    def _consistent_disks(self, machine: Machine, description: Description) -> list[tuple[str, str]]:
        """The disks, where directory and XML agree on them."""
        known = self._directory_disks(machine)
        wanted = [disk for disk in description.disks if disk.is_backed_up]
        live = [(disk.target, image_below(_source_of(machine.name, disk))) for disk in wanted]
        if sorted(known) != sorted(live):
            raise Refused(
                ReturnValue.INCONSISTENT_DISKS,
                f"{machine.name}: the directory has the disks {_shown(known)}, the description has {_shown(live)}; "
                "correct ou=devices or the machine's XML",
            )
        return known

    def _is_leftover(self, order: Order, backing: str) -> bool:
        """Whether an image still lies over an earlier backup of this machine, whose merge was never done."""
        below = PurePosixPath(backing)
        is_named_so = is_timestamp(below.parent.name) and ".." not in below.parts
        return is_named_so and below.parent.parent == order.paths.retain.parent

    def _checked_image(self, order: Order, disk: OrderDisk) -> OrderDisk:
        """The disk with its size, once its image is seen to be a plain one, whole or left over an earlier backup."""
        machine, path = order.machine, PurePosixPath(disk.path)
        if root_of(path, self.rules.image_roots) is None or ".." in path.parts:
            raise Refused(ReturnValue.PATH_NOT_ALLOWED, f"{machine}: the image {path} lies outside the image roots")
        header = self._header(machine, disk)
        if header.backing_file is not None and not self._is_leftover(order, header.backing_file):
            raise Refused(
                ReturnValue.UNMERGED_IMAGE,
                f"{machine}: the image {path} lies over {header.backing_file}, which is no earlier backup of ours; "
                "make the image whole (virsh blockpull, or qemu-img rebase) first",
            )
        return disk.model_copy(update={"size": header.virtual_size})

    def _header(self, machine: str, disk: OrderDisk) -> Header:
        """What a disk's image says of itself."""
        try:
            return self.host.header(PurePosixPath(disk.path))
        except FileNotFoundError:
            raise Refused(
                ReturnValue.UNEXPECTED_IMAGE, f"{machine}: the image {disk.path} of {disk.target} is not there"
            ) from None
        except (HostFailure, OSError) as why:
            raise Refused(ReturnValue.UNEXPECTED_IMAGE, f"{machine}: {disk.target}: {why}") from None

    def _length_in_retain(self, order: Order) -> int:
        try:
            with open_folder(order.paths.retain, self.host.roots) as folder:
                found = [folder.status(name) for name in folder.names()]
        except FileNotFoundError:
            return 0
        return sum(status.st_size for status in found if status)

    def _refuse_used_retain(self, order: Order) -> None:
        if left := names_in(order.paths.retain, self.host.roots):
            raise Refused(
                ReturnValue.RETAIN_NOT_EMPTY,
                f"{order.machine}: {order.paths.retain} is not empty ({', '.join(left[:5])}); "
                "nothing is written over it",
            )

    # firmware

    def _firmware(self, order: Order, description: Description) -> tuple[Firmware, ...]:
        found = []
        if description.nvram:
            if root_of(PurePosixPath(description.nvram), self.rules.nvram_roots) is None:
                raise Refused(
                    ReturnValue.PATH_NOT_ALLOWED,
                    f"{order.machine}: the NVRAM file {description.nvram} lies outside "
                    f"{', '.join(self.rules.nvram_roots)} (nvram_roots in the agent's settings)",
                )
            if self._exists(PurePosixPath(description.nvram).parent, PurePosixPath(description.nvram).name):
                found.append(Firmware(role="nvram", path=description.nvram, kept=order.paths.nvram))
        if description.has_tpm:
            found += self._tpm(order, description.uuid)
        return tuple(found)

    def _tpm(self, order: Order, uuid: str) -> list[Firmware]:
        for version, name in (("tpm2", "tpm2-00.permall"), ("tpm1.2", "tpm-00.permall")):
            directory = PurePosixPath(self.rules.libvirt_state) / "swtpm" / uuid / version
            if self._exists(directory, name):
                return [Firmware(role="tpm", path=str(directory / name), kept=order.paths.tpm)]
        return []

    def _kept_firmware(self, order: Order) -> tuple[Firmware, ...]:
        """What the snapshot found, by the files that lie in retain."""
        names = (("nvram", order.paths.nvram), ("tpm", order.paths.tpm))
        return tuple(
            Firmware(role=role, path="", kept=name) for role, name in names if self._exists(order.paths.retain, name)
        )

    def _exists(self, directory: PurePosixPath, name: str) -> bool:
        try:
            with open_folder(directory, self.host.roots) as folder:
                return folder.exists(name)
        except FileNotFoundError:
            return False


def _file_of(machine: str, disk: DirectoryDisk) -> str:
    if disk.source is None:
        raise Refused(
            ReturnValue.UNKNOWN_BACKEND,
            f"{machine}: {disk.target} is no image file (sstSourceFile); only files are saved",
        )
    if not disk.source.startswith("/") or ".." in PurePosixPath(disk.source).parts:
        raise Refused(
            ReturnValue.PATH_NOT_ALLOWED,
            f"{machine}: sstSourceFile of {disk.target} is {disk.source!r}; it must be absolute",
        )
    return disk.source


def _source_of(machine: str, disk: XmlDisk) -> str:
    if disk.source is None or disk.format != "qcow2":
        raise Refused(
            ReturnValue.UNKNOWN_BACKEND,
            f"{machine}: {disk.target} is {disk.format or 'of no known format'} on {disk.source or 'no file'}; "
            "only qcow2 image files can be saved; leave the machine out or convert the disk",
        )
    return disk.source


def _shown(disks: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{target}={path}" for target, path in sorted(disks)) or "none"


def _ownership(machine: str, plan: Plan, *, of_directories: bool) -> Ownership:
    if of_directories:
        owner, group, mode = plan.directory_owner, plan.directory_group, plan.directory_permission
        code = ReturnValue.CANNOT_SET_DIRECTORY_OWNERSHIP
    else:
        owner, group, mode = plan.image_owner, plan.image_group, plan.image_permission
        code = ReturnValue.CANNOT_SET_IMAGE_OWNERSHIP
    uid = _number(machine, owner, code, "user", lambda name: pwd.getpwnam(name).pw_uid)
    gid = _number(machine, group, code, "group", lambda name: grp.getgrnam(name).gr_gid)
    return Ownership(uid=uid, gid=gid, mode=mode)


def _number(machine: str, name: str | None, code: ReturnValue, what: str, look_up: Callable[[str], int]) -> int | None:
    if name is None or name.isdigit():
        return None if name is None else int(name)
    try:
        return look_up(name)
    except KeyError:
        raise Refused(
            code,
            f"{machine}: the plan names the {what} {name!r}, whom this node does not know; "
            "create it or correct the plan",
        ) from None
