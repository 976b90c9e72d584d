"""Return values: the numbers older tools show, by name, and ours from 100.

Written to sstProvisioningReturnValue by agent and controller; the reference page is generated from here.
"""

from enum import IntEnum


class ReturnValue(IntEnum):
    """What a step answers. Below 100 every number keeps the meaning it has always had."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> "ReturnValue":
        """Carry the sentence beside the number."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.meaning = meaning
        return member

    SUCCESS = 0, "success"
    UNDEFINED_ERROR = 1, "undefined error"
    MISSING_PARAMETER = 2, "missing parameter in config"
    RAM_DISK_NOT_VALID = 3, "RAM disk not valid"
    RAM_DISK_TOO_SMALL = 4, "not enough space on RAM disk"
    CANNOT_SAVE_STATE = 5, "cannot save machine state"
    CANNOT_WRITE_TO_BACKUP = 6, "cannot write to backup location"
    CANNOT_COPY_FILE = 7, "cannot copy file to backup location"
    CANNOT_COPY_IMAGE = 8, "cannot copy image"
    CANNOT_COPY_XML = 9, "cannot copy XML"
    CANNOT_COPY_BACKEND_FILE = 10, "cannot copy backend file"
    CANNOT_MERGE = 11, "cannot merge disk images"
    CANNOT_REMOVE_OLD_IMAGE = 12, "cannot remove old disk image"
    CANNOT_REMOVE_FILE = 13, "cannot remove file"
    CANNOT_CREATE_IMAGE = 15, "cannot create empty disk image"
    CANNOT_RENAME_IMAGE = 16, "cannot rename disk image"
    CANNOT_CONNECT_TO_BACKEND = 17, "cannot connect to backend"
    WRONG_STATE_INFORMATION = 18, "wrong state information"
    CANNOT_SET_IMAGE_OWNERSHIP = 19, "cannot set image ownership"
    CANNOT_SET_IMAGE_PERMISSION = 20, "cannot set image permission"
    CANNOT_RESTORE_MACHINE = 21, "cannot restore machine"
    CANNOT_LOCK_MACHINE = 22, "cannot lock machine"
    CANNOT_FIND_MACHINE = 23, "cannot find machine"
    CANNOT_COPY_STATE_TO_RETAIN = 24, "cannot copy state file to retain"
    RETAIN_ROOT_MISSING = 25, "retain root missing"
    BACKUP_ROOT_MISSING = 26, "backup root missing"
    CANNOT_CREATE_DIRECTORY = 27, "cannot create directory"
    CANNOT_SAVE_XML = 28, "cannot save XML"
    CANNOT_SAVE_BACKEND_ENTRY = 29, "cannot save backend entry"
    CANNOT_SET_DIRECTORY_OWNERSHIP = 30, "cannot set directory ownership"
    CANNOT_SET_DIRECTORY_PERMISSION = 31, "cannot set directory permission"
    CANNOT_FIND_CONFIGURATION = 32, "cannot find configuration entry"
    INCONSISTENT_DISKS = 33, "backend and XML inconsistent"
    CANNOT_CREATE_TARBALL = 34, "cannot create tarball"
    UNSUPPORTED_PROTOCOL = 35, "unsupported transfer protocol"
    UNKNOWN_BACKEND = 36, "unknown backend type"
    MISSING_FILES = 37, "missing necessary files"
    CORRUPT_IMAGE = 38, "corrupt disk image"
    UNSUPPORTED_PARAMETER = 39, "unsupported configuration parameter"
    CANNOT_MOVE_IMAGE_BACK = 40, "cannot move image to original location"
    CANNOT_DEFINE = 41, "cannot define machine"
    CANNOT_START = 42, "cannot start machine"
    UNDEFINED_OBJECT = 43, "cannot work on undefined object"
    CANNOT_READ_STATE = 44, "cannot read state file"
    CANNOT_READ_XML = 45, "cannot read XML file"
    RETAIN_NOT_EMPTY = 46, "not all files deleted from retain"
    NOT_ENOUGH_SPACE = 47, "not enough disk space"
    NO_SPACE_INFORMATION = 48, "no disk space information"
    NOT_TAKEN_UP = 100, "no agent took the work up in time"
    INVALID_NAME = 101, "machine name not allowed"
    PATH_NOT_ALLOWED = 102, "path outside the allowed roots"
    UNEXPECTED_IMAGE = 103, "disk image is not what it should be"
    UNMERGED_IMAGE = 104, "disk image still names a backing file"
    CONFIGURATION_UNREADABLE = 105, "the plan holds a value that cannot be read"
    GUEST_STOPPED = 106, "the machine stopped while it was being backed up"
    DESCRIPTION_NOT_ALLOWED = 107, "the description holds what is not allowed here"
    NO_SIGN_OF_LIFE = 108, "the agent gave no sign of life in time"
    MOVED_AWAY = 115, "the machine is another node's by now"
    SET_ELSEWHERE = 116, "the set lies where this node does not see it"


# A deletion that ends with one of these was refused, or nobody took it up: nothing was removed.
NOTHING_REMOVED = (
    *(ReturnValue.CANNOT_LOCK_MACHINE, ReturnValue.WRONG_STATE_INFORMATION, ReturnValue.UNMERGED_IMAGE),
    *(ReturnValue.PATH_NOT_ALLOWED, ReturnValue.RETAIN_ROOT_MISSING, ReturnValue.BACKUP_ROOT_MISSING),
    *(ReturnValue.CANNOT_FIND_CONFIGURATION, ReturnValue.UNSUPPORTED_PARAMETER, ReturnValue.CONFIGURATION_UNREADABLE),
    ReturnValue.NOT_TAKEN_UP,
)


def meaning_of(number: int) -> str:
    """Say what a number means; numbers of newer or older tools are shown as they are."""
    known = {int(member): member.meaning for member in ReturnValue}
    return known.get(number, f"return value {number}, unknown to this version")
