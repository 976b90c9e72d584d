"""Names of the directory: attributes, object classes, OIDs, and the shapes of DNs.

The schema files, the store's readers and the reference page are held against these tables by tests.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

SST_ATTRIBUTE_ARC = "1.3.6.1.4.1.22621.1.1"
SST_CLASS_ARC = "1.3.6.1.4.1.22621.1.2"
# Derived from a random UUID (ITU-T X.667), so nobody has to assign it.
VMKEEP_ARC = "2.25.64037108748839974904968365716255782299"


class Attribute(StrEnum):
    """Attributes that are read or written; the protocol's and (vmkeep…) our own."""

    MODE = "sstProvisioningMode"
    STATE = "sstProvisioningState"
    EXECUTION_DATE = "sstProvisioningExecutionDate"
    RETURN_VALUE = "sstProvisioningReturnValue"
    EXECUTION_TIME = "sstProvisioningExecutionTime"
    CRON_MINUTE = "sstCronMinute"
    CRON_HOUR = "sstCronHour"
    CRON_DAY = "sstCronDay"
    CRON_MONTH = "sstCronMonth"
    CRON_DAY_OF_WEEK = "sstCronDayOfWeek"
    CRON_COMMAND = "sstCronCommand"
    CRON_ACTIVE = "sstCronActive"
    BACKUP_ROOT = "sstBackupRootDirectory"
    RETAIN_ROOT = "sstBackupRetainDirectory"
    RAM_DISK = "sstBackupRamDiskLocation"
    RESTORE_WITHOUT_STATE = "sstRestoreVMWithoutState"
    EXCLUDE = "sstBackupExcludeFromBackup"
    ITERATIONS = "sstBackupNumberOfIterations"
    SEQUENCE_STOP = "sstVirtualizationVirtualMachineSequenceStop"
    SEQUENCE_START = "sstVirtualizationVirtualMachineSequenceStart"
    BANDWIDTH_MERGE = "sstVirtualizationBandwidthMerge"
    FORCE_START = "sstVirtualizationVirtualMachineForceStart"
    IMAGE_PERMISSION = "sstVirtualizationDiskImagePermission"
    IMAGE_FORMAT = "sstVirtualizationDiskImageFormat"
    IMAGE_OWNER = "sstVirtualizationDiskImageOwner"
    IMAGE_GROUP = "sstVirtualizationDiskImageGroup"
    DIRECTORY_OWNER = "sstVirtualizationDiskImageDirectoryOwner"
    DIRECTORY_GROUP = "sstVirtualizationDiskImageDirectoryGroup"
    DIRECTORY_PERMISSION = "sstVirtualizationDiskImageDirectoryPermission"
    MEMORY = "sstMemory"
    MACHINE = "sstVirtualMachine"
    MACHINE_TYPE = "sstVirtualMachineType"
    POOL = "sstVirtualMachinePool"
    NODE = "sstNode"
    DEVICE = "sstDevice"
    DISK = "sstDisk"
    READONLY = "sstReadonly"
    TYPE = "sstType"
    SOURCE_FILE = "sstSourceFile"
    MESSAGE = "vmkeepMessage"
    BYTES_DONE = "vmkeepBytesDone"
    BYTES_TOTAL = "vmkeepBytesTotal"
    PERCENT = "vmkeepPercent"
    CONSISTENCY = "vmkeepConsistency"
    SIZE = "vmkeepSize"
    SET_DIRECTORY = "vmkeepSetDirectory"
    MANIFEST_DIGEST = "vmkeepManifestDigest"
    ATTEMPTS = "vmkeepAttempts"
    CONFLICTS = "vmkeepConflicts"
    ENTRY = "vmkeepEntry"
    ENTRY_BEFORE = "vmkeepEntryBefore"
    RESTORE_DISK = "vmkeepRestoreDisk"
    RESTORE_FROM = "vmkeepRestoreFrom"
    RESTORE_ISOLATED = "vmkeepRestoreIsolated"
    RESTORE_KEEP_MAC = "vmkeepRestoreKeepMac"
    KEEP_OLD = "vmkeepKeepOld"
    DELETE_LAST = "vmkeepDeleteLast"
    METHOD = "vmkeepMethod"
    OVERLAY_LIMIT = "vmkeepOverlayLimit"
    BANDWIDTH_COPY = "vmkeepBandwidthCopy"
    FREEZE_SECONDS = "vmkeepFreezeSeconds"
    DEADLINE = "vmkeepDeadline"
    GROUP = "vmkeepGroup"
    WINDOW = "vmkeepWindow"
    INSTANT = "vmkeepInstant"
    GROUP_SPREAD = "vmkeepGroupSpread"
    GROUP_CONSISTENCY = "vmkeepGroupConsistency"
    START_WAIT = "vmkeepStartWait"
    STARTED = "vmkeepStarted"
    BANDWIDTH = "vmkeepBandwidth"
    PROMISE = "vmkeepPromise"
    AT_NODE = "vmkeepNode"
    SET_NODE = "vmkeepSetNode"
    KEEP = "vmkeepKeep"
    HOLD = "vmkeepHold"
    PRUNED = "vmkeepPruned"
    EPOCH = "vmkeepEpoch"
    LEASE_HOLDER = "vmkeepLeaseHolder"
    LEASE_VERSION = "vmkeepLeaseVersion"
    LEASE_SINCE = "vmkeepLeaseSince"
    LEASE_SECONDS = "vmkeepLeaseSeconds"


class ObjectClass(StrEnum):
    """Object classes that are read or written."""

    PROVISIONING = "sstProvisioning"
    CRON = "sstCronObjectClass"
    BACKUP = "sstVirtualizationBackupObjectClass"
    MACHINE = "sstVirtualizationVirtualMachine"
    DISK = "sstVirtualizationVirtualMachineDisk"
    POOL = "sstVirtualMachines"
    NODE = "sstVirtualizationNode"
    ORGANIZATIONAL_UNIT = "organizationalUnit"
    LEAF = "vmkeepLeaf"
    PLAN = "vmkeepPlan"
    LEASE = "vmkeepLease"


OIDS: dict[str, str] = {
    Attribute.MESSAGE: f"{VMKEEP_ARC}.1.1",
    Attribute.BYTES_DONE: f"{VMKEEP_ARC}.1.2",
    Attribute.BYTES_TOTAL: f"{VMKEEP_ARC}.1.3",
    Attribute.PERCENT: f"{VMKEEP_ARC}.1.4",
    Attribute.CONSISTENCY: f"{VMKEEP_ARC}.1.5",
    Attribute.SIZE: f"{VMKEEP_ARC}.1.6",
    Attribute.SET_DIRECTORY: f"{VMKEEP_ARC}.1.7",
    Attribute.MANIFEST_DIGEST: f"{VMKEEP_ARC}.1.8",
    Attribute.ATTEMPTS: f"{VMKEEP_ARC}.1.9",
    Attribute.CONFLICTS: f"{VMKEEP_ARC}.1.10",
    Attribute.ENTRY: f"{VMKEEP_ARC}.1.11",
    Attribute.ENTRY_BEFORE: f"{VMKEEP_ARC}.1.12",
    Attribute.RESTORE_DISK: f"{VMKEEP_ARC}.1.13",
    Attribute.RESTORE_FROM: f"{VMKEEP_ARC}.1.14",
    Attribute.RESTORE_ISOLATED: f"{VMKEEP_ARC}.1.15",
    Attribute.RESTORE_KEEP_MAC: f"{VMKEEP_ARC}.1.16",
    Attribute.KEEP_OLD: f"{VMKEEP_ARC}.1.17",
    Attribute.DELETE_LAST: f"{VMKEEP_ARC}.1.18",
    Attribute.METHOD: f"{VMKEEP_ARC}.1.19",
    Attribute.OVERLAY_LIMIT: f"{VMKEEP_ARC}.1.20",
    Attribute.BANDWIDTH_COPY: f"{VMKEEP_ARC}.1.21",
    Attribute.FREEZE_SECONDS: f"{VMKEEP_ARC}.1.22",
    Attribute.DEADLINE: f"{VMKEEP_ARC}.1.23",
    Attribute.GROUP: f"{VMKEEP_ARC}.1.40",
    Attribute.WINDOW: f"{VMKEEP_ARC}.1.41",
    Attribute.INSTANT: f"{VMKEEP_ARC}.1.42",
    Attribute.GROUP_SPREAD: f"{VMKEEP_ARC}.1.43",
    Attribute.GROUP_CONSISTENCY: f"{VMKEEP_ARC}.1.44",
    Attribute.START_WAIT: f"{VMKEEP_ARC}.1.60",
    Attribute.STARTED: f"{VMKEEP_ARC}.1.61",
    Attribute.BANDWIDTH: f"{VMKEEP_ARC}.1.65",
    Attribute.PROMISE: f"{VMKEEP_ARC}.1.50",
    Attribute.AT_NODE: f"{VMKEEP_ARC}.1.51",
    Attribute.SET_NODE: f"{VMKEEP_ARC}.1.52",
    Attribute.KEEP: f"{VMKEEP_ARC}.1.24",
    Attribute.HOLD: f"{VMKEEP_ARC}.1.25",
    Attribute.PRUNED: f"{VMKEEP_ARC}.1.26",
    Attribute.EPOCH: f"{VMKEEP_ARC}.1.30",
    Attribute.LEASE_HOLDER: f"{VMKEEP_ARC}.1.31",
    Attribute.LEASE_VERSION: f"{VMKEEP_ARC}.1.32",
    Attribute.LEASE_SINCE: f"{VMKEEP_ARC}.1.33",
    Attribute.LEASE_SECONDS: f"{VMKEEP_ARC}.1.34",
    ObjectClass.LEAF: f"{VMKEEP_ARC}.2.1",
    ObjectClass.PLAN: f"{VMKEEP_ARC}.2.2",
    ObjectClass.LEASE: f"{VMKEEP_ARC}.2.3",
}
_SST_NUMBERS = {
    16: Attribute.MODE,
    17: Attribute.STATE,
    18: Attribute.EXECUTION_DATE,
    182: Attribute.RETURN_VALUE,
    196: Attribute.EXECUTION_TIME,
    183: Attribute.CRON_MINUTE,
    184: Attribute.CRON_HOUR,
    185: Attribute.CRON_DAY,
    186: Attribute.CRON_MONTH,
    187: Attribute.CRON_DAY_OF_WEEK,
    188: Attribute.CRON_COMMAND,
    189: Attribute.CRON_ACTIVE,
    190: Attribute.BACKUP_ROOT,
    191: Attribute.RETAIN_ROOT,
    192: Attribute.RAM_DISK,
    193: Attribute.RESTORE_WITHOUT_STATE,
    194: Attribute.EXCLUDE,
    195: Attribute.ITERATIONS,
    197: Attribute.SEQUENCE_STOP,
    198: Attribute.SEQUENCE_START,
    199: Attribute.BANDWIDTH_MERGE,
    200: Attribute.FORCE_START,
    210: Attribute.IMAGE_PERMISSION,
    211: Attribute.IMAGE_FORMAT,
    212: Attribute.IMAGE_OWNER,
    213: Attribute.IMAGE_GROUP,
    214: Attribute.DIRECTORY_OWNER,
    215: Attribute.DIRECTORY_GROUP,
    216: Attribute.DIRECTORY_PERMISSION,
    21: Attribute.MEMORY,
    62: Attribute.MACHINE,
    68: Attribute.NODE,
    69: Attribute.TYPE,
    81: Attribute.DEVICE,
    82: Attribute.SOURCE_FILE,
    84: Attribute.READONLY,
    87: Attribute.DISK,
    128: Attribute.POOL,
    164: Attribute.MACHINE_TYPE,
}
_SST_CLASS_NUMBERS = {
    11: ObjectClass.PROVISIONING,
    57: ObjectClass.CRON,
    58: ObjectClass.BACKUP,
    26: ObjectClass.MACHINE,
    28: ObjectClass.DISK,
    37: ObjectClass.POOL,
    21: ObjectClass.NODE,
}
OIDS |= {name: f"{SST_ATTRIBUTE_ARC}.{number}" for number, name in _SST_NUMBERS.items()}
OIDS |= {name: f"{SST_CLASS_ARC}.{number}" for number, name in _SST_CLASS_NUMBERS.items()}

_NEEDS_BACKSLASH = re.compile(r'[,+"\\<>;=]')


def escape_rdn(value: str) -> str:
    """One attribute value as it may stand in a DN (RFC 4514 §2.4)."""
    escaped = _NEEDS_BACKSLASH.sub(lambda found: "\\" + found.group(), value).replace("\0", r"\00")
    if escaped.startswith((" ", "#")):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and len(value) > 1:
        escaped = escaped[:-1] + r"\ "
    return escaped


@dataclass(frozen=True)
class Tree:
    """Where things lie below one suffix."""

    suffix: str

    @property
    def top(self) -> str:
        """The subtree all of virtualization lives in."""
        return f"ou=virtualization,ou=services,{self.suffix}"

    @property
    def configuration(self) -> str:
        """Parent of what holds for the whole cluster."""
        return f"ou=configuration,{self.top}"

    @property
    def cluster_plan(self) -> str:
        """The cluster-wide defaults of a backup plan."""
        return f"ou=backup,{self.configuration}"

    @property
    def lease(self) -> str:
        """The entry that says which controller acts."""
        return f"cn=lease,{self.configuration}"

    @property
    def machines(self) -> str:
        """Parent of every machine and template."""
        return f"ou=virtual machines,{self.top}"

    @property
    def pools(self) -> str:
        """Parent of every machine pool."""
        return f"ou=virtual machine pools,{self.top}"

    @property
    def nodes(self) -> str:
        """Parent of every node; a node's entry is also its identity."""
        return f"ou=nodes,{self.top}"

    def machine(self, name: str) -> str:
        """One machine's entry."""
        return f"{Attribute.MACHINE}={escape_rdn(name)},{self.machines}"

    def machine_plan(self, name: str) -> str:
        """One machine's own plan, and the parent of its leaves."""
        return f"ou=backup,{self.machine(name)}"

    def pool_plan(self, pool: str) -> str:
        """The plan of one pool."""
        return f"ou=backup,{Attribute.POOL}={escape_rdn(pool)},{self.pools}"

    def leaf(self, machine: str, timestamp: str) -> str:
        """One backup of one machine."""
        return f"ou={escape_rdn(timestamp)},{self.machine_plan(machine)}"

    def node(self, name: str) -> str:
        """One node."""
        return f"{Attribute.NODE}={escape_rdn(name)},{self.nodes}"
