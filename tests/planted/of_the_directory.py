"""Planted bugs of what is written to the directory and asked of it."""

from tests.planted.bug import Bug, Edit

_DOORS = "tests/slapd/test_openldap_identity.py"
_PLANS, _STORES = "tests/slapd/test_plan_changes.py", "tests/slapd/conformance"

BUGS = (
    Bug(
        "A leaf is replaced blindly, not claimed",
        "Two agents, or an agent and an admin, work on one machine at once; both believe they may.",
        (
            Edit(
                "vmkeep/directory/claims.py",
                "    return [removal, (ADD, encoded(new))] if new else [removal]",
                "    return [(REPLACE, encoded(new))]",
            ),
        ),
        (f"{_STORES}/test_claims.py::test_of_eight_who_claim_at_once_exactly_one_wins[openldap]",),
    ),
    Bug(
        "A result is let go before the directory has it",
        "The directory is away for a moment, and a backup that is there is never heard of: its leaf hangs.",
        (
            Edit(
                "nodeagent/reporting.py",
                "    is_told = False\n",
                "    journal.remove()\n    is_told = False\n",
            ),
        ),
        ("tests/pure/test_reporting.py::test_a_result_is_kept_until_the_directory_has_it",),
    ),
    Bug(
        "A result is told whoever holds the leaf by now",
        "An admin has moved a leaf on, and a late agent moves it back.",
        (
            Edit(
                "nodeagent/reporting.py",
                "    if leaf.mode is not order.mode or not leaf.is_at_work or",
                "    if leaf.mode is None or",
            ),
        ),
        ("tests/pure/test_reporting.py::test_the_result_of_a_leaf_that_somebody_moved_changes_nothing",),
    ),
    Bug(
        "A node takes up what another is at",
        "A machine is moved while its set is carried: two nodes write the same files, and half a set is published.",
        (Edit("nodeagent/cycle.py", "if not leaf.is_at_work or leaf.is_left_to(self._node):", "if leaf.machine:"),),
        ("tests/pure/test_moves.py::test_what_another_node_is_at_is_left_to_it_also_where_the_machine_is_here",),
    ),
    Bug(
        "A node that was lost goes on where it was",
        "Its machines run elsewhere by then; a second QEMU, or a merge, writes to their images.",
        (Edit("nodeagent/moves.py", 'if order.boot in ("", self.boot):', "if order.boot:"),),
        ("tests/pure/test_moves.py::test_what_was_begun_before_a_boot_is_given_up_where_the_machine_is_elsewhere",),
    ),
    Bug(
        "Who copies a set does not ask whose it is before the file is done",
        "An image takes hours; the node that was given the leaf meanwhile writes to the same set.",
        (Edit("nodeagent/operations/following.py", "if self._clock() >= self._due:", "if not self._due:"),),
        ("tests/pure/test_moves.py::test_who_carries_a_set_asks_now_and_then_whether_it_is_still_theirs",),
    ),
    Bug(
        "Who copies a set begins it anew at each silence of the directory",
        "A copy that takes longer than the deadline loses hours at each restart of slapd, and fails in the end.",
        (
            Edit(
                "nodeagent/operations/following.py",
                "        except TryLater:\n            return False\n",
                "        except TryLater:\n            raise\n",
            ),
        ),
        ("tests/pure/test_moves.py::test_who_carries_a_set_for_long_waits_in_place_for_a_directory_that_is_silent",),
    ),
    Bug(
        "A file that is made gets its name whoever makes it by now",
        "Two nodes copy one set for a moment, and the half file of one is published as whole.",
        (
            Edit(
                "nodeagent/host/folders.py",
                "                if not self._bears(partial, descriptor):\n",
                "                if not partial:\n",
            ),
        ),
        ("tests/host/test_copying.py::test_of_two_who_make_one_file_the_later_has_it_and_its_half_is_given_no_name",),
    ),
    Bug(
        "An image is moved away from under a machine that runs where libvirt does not look",
        "The guest writes on to a file that goes away with the backup, or with what a restore replaced.",
        (
            Edit(
                "nodeagent/operations/in_use.py",
                "    if not _comes_free(image, host, is_in_use):\n",
                "    if not image:\n",
            ),
        ),
        ("tests/host/test_open_elsewhere.py::test_it_is_refused_with_what_to_do_and_free_again_it_is_not",),
    ),
    Bug(
        "Who reads an image stands in the way of its backup",
        "A template whose clones run has no backup, every night.",
        (Edit("nodeagent/host/images.py", "_WRITES = _FIRST_LOCK + 1", "_WRITES = _FIRST_LOCK"),),
        ("tests/host/test_open_elsewhere.py::test_who_only_reads_an_image_is_not_in_the_way_of_its_snapshot",),
    ),
    Bug(
        "A CD-ROM that others read stands in the way of a restore",
        "All machines of a cluster have the same one: none that is off can be restored while another runs.",
        (Edit("nodeagent/operations/restore_survey.py", "if disk.is_backed_up and disk.source]", "if disk.source]"),),
        (
            "tests/host/test_open_elsewhere.py"
            "::test_a_restore_goes_on_where_others_read_what_is_not_the_machines_own_data",
        ),
    ),
    Bug(
        "A merge writes to the image of a machine that is off here and may run elsewhere",
        "It was moved while the merge was at work, and its disk is damaged under it.",
        (
            Edit(
                "nodeagent/operations/following.py",
                "    host.moves.refuse_if_moved(order)\n",
                "",
            ),
        ),
        ("tests/host/test_moved_images.py::test_an_image_whose_machine_has_left_is_not_written_to[moved]",),
    ),
    Bug(
        "A backup that lies ahead of the clock keeps a promise",
        "After a night with a wrong clock nobody hears for years that there are no backups any more.",
        (Edit("vmkeep/contract/promises.py", "return leaf.planned > now + _CLOCKS_DIFFER", "return False"),),
        ("tests/pure/test_promises.py::test_a_leaf_that_lies_ahead_of_the_clock_keeps_no_promise_and_is_named",),
    ),
    Bug(
        "Plans are taken for unchanged while nobody watches them",
        "A machine left out during a failure of the network is backed up all the same, and a new one never is.",
        (
            Edit(
                "controller/plan_changes.py",
                "        if not self.is_watched:\n",
                "        if self._watcher is None:\n",
            ),
        ),
        (f"{_PLANS}::test_a_plan_edited_while_the_watch_is_cut_off_is_seen_at_the_next_look",),
    ),
    Bug(
        "The entries of machines are no plans",
        "A machine that was moved counts where it was, and one without ou=backup is not seen before the next restart.",
        (
            Edit(
                "controller/plan_changes.py",
                "AnyOf((_MACHINES, _POOLS, BACKUP_SUBTREES))",
                "AnyOf((_POOLS, BACKUP_SUBTREES))",
            ),
        ),
        (
            f"{_PLANS}::test_whatever_is_done_to_machines_and_plans_is_seen[machine-moved]",
            f"{_PLANS}::test_whatever_is_done_to_machines_and_plans_is_seen[machine-added-without-a-plan]",
        ),
    ),
    Bug(
        "A watch passes for alive before its owner knows that it was away",
        "What changed meanwhile is taken for unchanged.",
        (
            Edit(
                "vmkeep/directory/watch.py",
                "            self._wake_owner()\n            self._noticing = True  #",
                "            self._noticing = True\n            self._wake_owner()  #",
            ),
        ),
        (
            f"{_STORES}/test_watching.py::test_a_watch_that_comes_back_is_alive_only_after_it_has_woken_its_owner[openldap]",
        ),
    ),
    Bug(
        "The name in a server's certificate is not looked at",
        "Anybody with any certificate stands in for the directory and is sent the password.",
        (
            Edit(
                "vmkeep/directory/connection.py",
                "        context.minimum_version = ssl.TLSVersion.TLSv1_2",
                "        context.check_hostname = False\n        context.minimum_version = ssl.TLSVersion.TLSv1_2",
            ),
        ),
        (
            f"{_DOORS}::test_a_server_that_cannot_be_trusted_is_sent_nothing[ldaps-of another host]",
            f"{_DOORS}::test_a_server_that_cannot_be_trusted_is_sent_nothing[start_tls-of another host]",
        ),
    ),
    Bug(
        "Values in filters are not escaped",
        "A machine that is called `*` is every machine.",
        (
            Edit(
                "vmkeep/directory/filters.py",
                'return "".join(chr(byte) if byte in _PLAIN else f"\\\\{byte:02x}" for byte in octets(value))',
                "return octets(value).decode()",
            ),
        ),
        ("tests/slapd/test_hostile_names.py::test_a_value_in_a_filter_finds_what_bears_it_and_nothing_else",),
    ),
    Bug(
        "What is merely called finished counts as a backup",
        "An admin ends three failed leaves by hand, and the plan lets the last real backups go for them.",
        (
            Edit(
                "vmkeep/contract/pruning.py",
                'return "" if leaf.manifest_digest else f"no set is known of it',
                'return "" if leaf.timestamp else f"no set is known of it',
            ),
        ),
        ("tests/pure/test_decide_transcripts.py::test_the_controller_decides_as_the_transcript_has_it[pruned]",),
    ),
    Bug(
        "Backups go while a restore is under way",
        "A restore that fails half-way finds the set that it could have begun anew from gone.",
        (
            Edit(
                "vmkeep/contract/pruning.py",
                'yield f"a restore is under way ({leaf.timestamp} is at {leaf.raw_mode})"',
                "continue",
            ),
        ),
        (
            "tests/pure/test_decide_transcripts.py::test_the_controller_decides_as_the_transcript_has_it[pruned]",
            "tests/pure/test_pruning.py::"
            "test_through_a_year_of_failures_holds_restores_and_outages_what_is_left_is_what_the_policy_says",
        ),
    ),
    Bug(
        "A refused deletion is a failed backup",
        "A set that somebody held looks failed from then on, and nobody restores from it.",
        (Edit("controller/decide.py", "        if was_refused(leaf):\n            return self._keep(leaf)\n", ""),),
        (
            "tests/pure/test_decide_transcripts.py::test_the_controller_decides_as_the_transcript_has_it[kept_after_all]",
        ),
    ),
    Bug(
        "How long an agent is waited for is told by another's clock",
        "The directory's clock is behind by an hour, and every backup is given up the moment it is asked for.",
        (
            Edit(
                "controller/cycle.py",
                "changed=self._changed_as_seen_here(view), ",
                "",
            ),
        ),
        ("tests/slapd/test_controller_clock.py::test_an_agent_has_its_time_by_the_controllers_own_clock[1]",),
    ),
    Bug(
        "A late write of a controller that lost the lease goes through",
        "A controller that stood still ends a step that its successor has asked for anew; that backup is lost.",
        (
            Edit(
                "vmkeep/directory/catalogue.py",
                "        return ANYTHING if epoch is None else Not(AtLeast(Attribute.EPOCH, epoch + 1))",
                "        return ANYTHING",
            ),
        ),
        ("tests/pure/test_lease.py::test_a_late_claim_a_late_note_and_a_late_removal_come_to_nothing",),
    ),
    Bug(
        "The time of the lease counts from the answer",
        "The directory is slow, and two controllers act at once: both start what is due.",
        (
            Edit(
                "controller/lease.py",
                "        self._version, self._asked, self.other = version, asked, LeaseEntry()",
                "        self._version, self._asked, self.other = version, self.clock(), LeaseEntry()",
            ),
        ),
        ("tests/pure/test_lease.py::test_time_counts_from_before_the_question_not_from_the_answer",),
    ),
    Bug(
        "Who takes the lease decides before it has marked what is in flight",
        "What its predecessor still had in its hands is written beside its own decisions.",
        (
            Edit(
                "controller/serving.py",
                "            marked = mark_all(self._catalogue, epoch, self._log)\n",
                "",
            ),
        ),
        ("tests/pure/test_lease.py::test_who_takes_the_lease_marks_what_is_in_flight_before_its_first_turn",),
    ),
)
