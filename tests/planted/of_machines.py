"""Planted bugs of what is done to a machine, and of the journal that says what was."""

from tests.planted.bug import Bug, Edit

_OPERATIONS = "nodeagent/operations"
_STEPS = "tests/pure/test_restore_steps.py"
_TAKEN_BACK = f"{_STEPS}::test_refused_after_any_step_and_killed_while_taking_it_back_the_machine_is_as_it_was"
_SNAPSHOT = "tests/crash_states/test_backup.py::test_a_snapshot_leaves_the_old_chain_or_the_new_one"
_KILLED = "tests/crash_states/test_killed_twice.py::test"

BUGS = (
    Bug(
        "A machine is restored over its new image alone, without the chain below",
        "It reads zeros where its data was, and writes them back.",
        (
            Edit(
                f"{_OPERATIONS}/resuming.py",
                "xml = with_chain(inside, backing)",
                "xml = inside",
            ),
        ),
        (f"{_SNAPSHOT}[runs, memory in retain]",),
    ),
    Bug(
        "The journal notes a step after it was done",
        "Killed in between, nobody knows that there is something to take back.",
        (
            Edit(
                "nodeagent/runner.py",
                "            self.journal.began(step.name, self.clock(), must=not step.guest_is_down)\n"
                "        return step.apply(self._facts)",
                "            facts = step.apply(self._facts)\n"
                "            self.journal.began(step.name, self.clock(), must=not step.guest_is_down)\n"
                "            return facts\n"
                "        return step.apply(self._facts)",
            ),
        ),
        (f"{_TAKEN_BACK}[runs, two disks, firmware]",),
    ),
    Bug(
        "Lines of the journal are not fsynced",
        "After a power loss the agent does again what was done, with a machine that has run on since.",
        (Edit("nodeagent/journal.py", "            os.fdatasync(descriptor)\n", ""),),
        ("tests/crash_states/test_journal.py::test_no_line_is_lost_that_the_agent_went_on_by",),
    ),
    Bug(
        "A restore that fails leaves the new images where they are",
        "The machine is told to be as it was, and stands on disks that are not its own.",
        (
            Edit(
                f"{_OPERATIONS}/restore.py",
                "        .undone_by(aside.place_back)\n",
                "",
            ),
        ),
        (f"{_TAKEN_BACK}[off, single disks]",),
    ),
    Bug(
        "Saved memory is used although its disks were written to since",
        "A guest runs on with what it remembers of a disk that is another by now: its filesystem is destroyed.",
        (
            Edit(
                f"{_OPERATIONS}/saved_memory.py",
                "([] if is_past else candidates)",
                "candidates",
            ),
        ),
        (
            "tests/pure/test_restore_steps_after.py::test_memory_is_not_used_where_the_machine_ran_and_was_switched_off_in_between",
        ),
    ),
    Bug(
        "Old memory goes only after the machine runs again",
        "Killed in between, the next start would bring a machine back from memory that is of the past.",
        (
            Edit(
                f"{_OPERATIONS}/saved_memory.py",
                "    drop(host, candidates)\n"
                "    view = host.hypervisor.look(machine)\n"
                "    if view is not None and view.power is Power.PAUSED and power is Power.RUNNING:\n"
                "        host.hypervisor.resume(machine)\n"
                "    return left",
                "    view = host.hypervisor.look(machine)\n"
                "    if view is not None and view.power is Power.PAUSED and power is Power.RUNNING:\n"
                "        host.hypervisor.resume(machine)\n"
                "    drop(host, candidates)\n"
                "    return left",
            ),
        ),
        ("tests/host/test_saved_memory.py::test_the_state_file_is_gone_before_the_machine_runs",),
    ),
    Bug(
        "Filesystems are not thawed after a freeze that failed",
        "The guest stands still at its next write, until somebody finds out why.",
        (
            Edit(
                f"{_OPERATIONS}/freezing.py",
                'go_on = "" if self._thaw() else',
                'go_on = "" if why else',
            ),
        ),
        (
            "tests/cluster/test_method_freezing.py::"
            "test_an_agent_inside_that_dies_with_frozen_filesystems_leaves_none_frozen",
        ),
    ),
    Bug(
        "Two workers may have one machine",
        "An agent that was thought dead and its successor undo each other's work on one machine.",
        (
            Edit(
                "nodeagent/host/locks.py",
                "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
                "            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
            ),
        ),
        ("tests/pure/test_worker.py::test_a_bug_is_not_told_while_another_worker_has_the_machine",),
    ),
    Bug(
        "An image may keep its data in another file",
        "A set that was tampered with makes a guest's disk of any file of the host.",
        (
            Edit("nodeagent/host/qcow2.py", "if incompatible & _EXTERNAL_DATA:", "if incompatible & 0:"),
            Edit("nodeagent/host/qcow2.py", "_KNOWN = _DIRTY |", "_KNOWN = _DIRTY | _EXTERNAL_DATA |"),
            Edit("nodeagent/host/qcow2.py", "    if _DATA_FILE_NAME in _extensions(", "    if 0 in _extensions("),
        ),
        (
            "tests/host/test_image_headers.py::"
            "test_a_crafted_image_is_refused_or_says_what_it_lies_over[data elsewhere]",
        ),
    ),
    Bug(
        "Whether a save came to its end is not asked after a kill",
        "The machine, off by now, is taken for one that was switched off: it is started anew, its memory thrown away.",
        (
            Edit(
                f"{_OPERATIONS}/resuming.py",
                "            if saved_memory.is_complete(self._host, candidate):",
                "            if saved_memory.is_complete(self._host, candidate) and not facts:",
            ),
        ),
        (f"{_KILLED}_killed_after_anything_it_did_and_again_in_recovery_the_work_is_done[snapshotting-paused]",),
    ),
    Bug(
        "What a copy left half done is not removed when it is begun again",
        "An agent that was killed while it brought a set back never gets through with it.",
        (
            Edit(
                f"{_OPERATIONS}/unretain.py",
                "            retain.remove(file.kept)  # of an attempt that did not live to note its end\n",
                "",
            ),
        ),
        (
            f"{_KILLED}_killed_after_anything_it_did_and_again_in_recovery_the_work_is_done"
            "[unretainingLargeFiles-a set]",
        ),
    ),
    Bug(
        "A merge ends while QEMU still holds back what it made whole",
        "QEMU dies, or the host, and the machine's disk reads as zeros: nothing leads to the data any more.",
        (
            Edit(
                f"{_OPERATIONS}/streaming.py",
                "    if is_active:\n        host.hypervisor.flush(order.machine, disk.path)\n",
                "",
            ),
        ),
        (
            "tests/crash_states/test_backup.py::test_a_merge_leaves_whole_images_and_the_set_as_it_was[paused]",
            "tests/cluster/test_merge_durable.py::"
            "test_a_qemu_that_dies_right_after_the_merge_takes_nothing_along[paused]",
        ),
    ),
    Bug(
        "An image that names no backing file is taken for whole",
        "Killed while it was being made whole, it stays a disk of zeros, and what lay below it goes.",
        (
            Edit(
                f"{_OPERATIONS}/streaming.py",
                "            return below if retain.read(mark.name).decode() == _inode(host, disk) else None",
                "            return None",
            ),
        ),
        ("tests/crash_states/test_backup.py::test_a_merge_leaves_whole_images_and_the_set_as_it_was[off]",),
    ),
    Bug(
        "A state file of our own is not looked into before libvirt reads it",
        "Whoever may write to the RAM disk has a program of their choice run as root.",
        (Edit(f"{_OPERATIONS}/saved_memory.py", "    if foreign:\n", "    if foreign and not path:\n"),),
        ("tests/host/test_saved_memory.py::test_another_emulator_in_our_own_state_file_is_never_run",),
    ),
    Bug(
        "The encoding that a description declares is believed",
        "It shows us one machine and libvirt, which reads UTF-8 always, another.",
        (Edit("nodeagent/host/description.py", '    "encoding": "utf-8",\n', ""),),
        ("tests/host/test_description_encodings.py::test_what_we_check_is_what_libvirt_acts_on[hidden-t-HZ]",),
    ),
    Bug(
        "A tool opens the images of a set before anybody looked at their headers",
        "A set that was tampered with has any file of the host read, and its content becomes a guest's disk.",
        (
            Edit(
                f"{_OPERATIONS}/unretain.py",
                "                if backing is not None:\n",
                "                if not file:\n",
            ),
        ),
        (
            "tests/cluster/test_images_tampered.py::"
            "test_an_image_of_a_set_that_names_another_file_is_not_brought_back[a host's file below]",
        ),
    ),
)
