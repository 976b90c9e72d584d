"""Planted bugs of files and names: what a power loss, a full disk or a second process makes of them."""

from tests.planted.bug import Bug, Edit

_FOLDERS, _COPYING = "nodeagent/host/folders.py", "nodeagent/host/copying.py"
_RETAIN, _SWAPPING = "nodeagent/operations/retain.py", "nodeagent/operations/swapping.py"
_BACKUP, _RESTORE = "tests/crash_states/test_backup.py", "tests/crash_states/test_restore.py"
_SNAPSHOT = f"{_BACKUP}::test_a_snapshot_leaves_the_old_chain_or_the_new_one"
_RETAINED = f"{_BACKUP}::test_a_retain_shows_a_set_only_once_it_is_whole_and_never_loses_the_last"
_COPIES = "tests/host/test_copying.py"

BUGS = (
    Bug(
        "No fsync of a small file before it gets its name",
        "After a power loss a set has an empty manifest, or a machine an empty description.",
        (Edit(_FOLDERS, "file.write(content)\n                os.fsync(descriptor)", "file.write(content)"),),
        (f"{_RETAINED}[off, beside others]",),
    ),
    Bug(
        "No fsync of a file that was copied",
        "After a power loss a set is brought back with holes where its disks were, and the machine put on them.",
        (Edit(_FOLDERS, "yield descriptor\n                os.fsync(descriptor)", "yield descriptor"),),
        (
            "tests/crash_states/test_unretain.py::"
            "test_what_is_brought_back_is_whole_or_not_there[unretainingLargeFiles-False]",
        ),
    ),
    Bug(
        "No fsync of directories",
        "After a power loss names are gone or back again: a half set, an image that nobody finds.",
        (Edit(_FOLDERS, '"""Make names durable."""\n        os.fsync(self.descriptor)', '"""Make names durable."""'),),
        (
            f"{_SNAPSHOT}[paused]",
            "tests/crash_states/test_unretain.py::test_a_deletion_removes_its_set_and_no_other[]",
        ),
    ),
    Bug(
        "A failed fsync is tried again",
        "The kernel has dropped what it could not write: the second fsync says yes, and the set has holes.",
        (
            Edit(
                _FOLDERS,
                "                os.fsync(descriptor)\n                os.posix_fadvise(",
                "                try:\n"
                "                    os.fsync(descriptor)\n"
                "                except OSError:\n"
                "                    os.fsync(descriptor)\n"
                "                os.posix_fadvise(",
            ),
        ),
        (f"{_COPIES}::test_a_failed_fsync_ends_the_copy_and_is_not_tried_again",),
    ),
    Bug(
        "A file is renamed over one that exists",
        "A copy takes the place of a file that somebody else put there, without a word.",
        (
            Edit(
                _FOLDERS,
                "        if self.exists(name):\n"
                '            raise HostFailure(f"{self.path / name} exists; nothing is written over")\n'
                "        partial",
                "        partial",
            ),
            Edit(
                _FOLDERS,
                "        try:\n            self.link_to(making, self, name)\n        except OSError as why:",
                "        try:\n            self.rename_over(making, self, name)\n        except OSError as why:",
            ),
        ),
        (f"{_COPIES}::test_nothing_is_written_over",),
    ),
    Bug(
        "An image is moved away before the new one is in its place",
        "Killed in between, or without power, a machine has no image at all where its disk should be.",
        (
            Edit(
                _SWAPPING,
                "images.link_to(name, retain, disk.kept)",
                "images.rename_over(name, retain, disk.kept)",
            ),
        ),
        (f"{_SNAPSHOT}[off]",),
    ),
    Bug(
        "Files get their own name before they are whole",
        "Half a copy looks like a disk: whoever goes on after a kill takes it for the image.",
        (
            Edit(
                _FOLDERS,
                "        partial = _partial(name)\n        self.remove(partial)\n        with",
                "        partial = name\n        self.remove(partial)\n        with",
            ),
            Edit(
                _FOLDERS,
                "                self.give_name(partial, name)\n            finally:\n",
                "            except OSError:\n",
            ),
        ),
        (f"{_COPIES}::test_the_name_appears_when_the_whole_file_is_there",),
    ),
    Bug(
        "The manifest is written before its files are there",
        "A set that lacks its disks counts as a backup; the good ones before it are removed.",
        (
            Edit(
                _RETAIN,
                "        *files,\n        Step(",
                "        Step(",
            ),
            Edit(_RETAIN, "carrying.publish),\n        clear,", "carrying.publish),\n        *files,\n        clear,"),
            Edit(
                _RETAIN,
                'Content(int(facts[f"{file.name} size"]), str(facts[f"{file.name} digest"])),',
                "digest_file(source, file.name),",
            ),
        ),
        (f"{_RETAINED}[off, beside others]",),
    ),
    Bug(
        "A deletion goes by the hold that was read when it was asked for",
        "Somebody holds a backup in time, is told so, and it is deleted all the same.",
        (
            Edit(
                "nodeagent/operations/deletion_survey.py",
                "hold = why_held(catalogue.leaf(leaf.dn) or leaf, ",
                "hold = why_held(leaf, ",
            ),
        ),
        (
            "tests/pure/test_deletion_surveys.py::"
            "test_what_is_held_stays_also_where_that_was_said_only_after_the_deletion_was_asked_for",
        ),
    ),
    Bug(
        "Good sets are counted by leaves, not by files",
        "The storage of the backups is not mounted for a night, and the leaves of good sets go one by one.",
        (
            Edit(
                "nodeagent/operations/deletion_survey.py",
                "    if leaf.timestamp not in complete and not leaf.manifest_digest:\n        return\n",
                "    if leaf.timestamp not in complete:\n        return\n",
            ),
        ),
        (
            "tests/pure/test_deletion_surveys.py::"
            "test_where_the_storage_is_not_mounted_no_leaf_of_a_good_backup_goes[True]",
        ),
    ),
    Bug(
        "The only good set may be deleted",
        "One wrong line in LDAP, and a machine has no backup left.",
        (
            Edit(
                "nodeagent/operations/deletion_survey.py",
                "    if floor:\n        _refuse_last(leaf, _complete_sets(leaf, directory, plan, host), floor, host)\n",
                "",
            ),
        ),
        ("tests/pure/test_restore_protects_sets.py::test_the_only_good_set_is_not_deleted",),
    ),
    Bug(
        "Digests are not compared when a set is brought back",
        "A machine is restored from a disk that rotted on the storage, and its good one goes.",
        (Edit("nodeagent/operations/unretain.py", "if content != file.digest:", "if not content:"),),
        (
            "tests/crash_states/test_unretain.py::"
            "test_what_is_brought_back_is_whole_or_not_there[unretainingLargeFiles-True]",
        ),
    ),
    Bug(
        "Links are followed",
        "Whoever may write to a backup directory has the agent, who is root, write anywhere.",
        (Edit(_FOLDERS, "os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC", "os.open(name, flags | os.O_CLOEXEC"),),
        (f"{_COPIES}::test_a_link_is_not_followed",),
    ),
    Bug(
        "An empty directory in retain is taken for what a lost snapshot left",
        "The next backup removes the files of a good set, whose leaf goes on saying that it is there.",
        (
            Edit(
                "nodeagent/operations/leftovers.py",
                "if making else _made_by_a_snapshot(order) if is_snapshot else []",
                "if making else _made_by_a_snapshot(order)",
            ),
            Edit(
                "nodeagent/operations/leftovers.py",
                'if not backup.exists(f"{MANIFEST_NAME}.{order.timestamp}"):',
                "if True:",
            ),
        ),
        ("tests/host/test_leftovers.py::test_a_set_that_is_there_loses_nothing_whatever_lies_in_retain",),
    ),
)
