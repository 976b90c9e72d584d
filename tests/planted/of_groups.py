"""Planted bugs of groups and budgets."""

from tests.planted.bug import Bug, Edit

_BUDGETS, _ADMISSION = "tests/pure/test_budgets.py", "tests/pure/test_admission.py"
_BANDWIDTHS = "tests/pure/test_bandwidths.py"
_TRANSCRIPTS = "tests/pure/test_decide_transcripts.py::test_the_controller_decides_as_the_transcript_has_it"

BUGS = (
    Bug(
        "Room that somebody older waits for is given away",
        "A group that needs room for three waits for ever beside single machines that need room for one.",
        (
            Edit(
                "controller/budgets.py",
                "        return place not in self._awaited and (",
                "        return bool(",
            ),
        ),
        (
            f"{_BUDGETS}::test_room_that_a_group_waits_for_is_not_given_to_younger_ones",
            f"{_TRANSCRIPTS}[group_budget]",
        ),
    ),
    Bug(
        "What a dead node was asked for counts for ever",
        "One node dies with work in its hands, and the backups of the whole cluster stand still.",
        (Edit("controller/budgets.py", "    if piece.node in down:", "    if piece.node in ():"),),
        (
            f"{_BUDGETS}::test_a_node_that_is_down_changes_nothing_for_the_others",
            f"{_ADMISSION}::test_a_node_that_is_down_gives_the_room_back_and_takes_it_again_when_it_returns",
        ),
    ),
    Bug(
        "A group is judged by those who were asked",
        "The web server is saved, its database is still to be asked, and the leaf says that they are one instant.",
        (
            Edit(
                "controller/verdicts.py",
                "        groups = groups_of(leaves, self.places.groupings(leaves))",
                "        groups = groups_of(leaves, {})",
            ),
        ),
        (
            "tests/pure/test_groups_judged.py::test_a_group_that_nobody_was_asked_of_yet_is_not_judged_by_those_who_were",
        ),
    ),
    Bug(
        "A machine waits for its turn without bound",
        "The agent of the database's node is dead, and the web server stands still until the morning.",
        (
            Edit(
                "nodeagent/turns.py",
                "    until = time.monotonic() + seconds\n    while",
                "    until = time.monotonic() + LONGEST\n    while",
            ),
        ),
        ("tests/pure/test_turns.py::test_a_directory_that_hangs_keeps_nobody_for_longer_than_the_plan_says",),
    ),
    Bug(
        "A machine that waits keeps the room that the other needs",
        "One snapshot at a time here: the web server waits for the database, and the database for the web server.",
        (Edit("nodeagent/cycle.py", " if job.machine not in waiting)", ")"),),
        ("tests/pure/test_turns.py::test_a_machine_that_waits_takes_up_no_room_of_its_node",),
    ),
    Bug(
        "Machines run on as soon as all are saved",
        "The web server runs before its database does, and its users see errors.",
        (
            Edit(
                "controller/start_order.py",
                "one.is_in(_NOT_SNAPSHOTTED) and not one.leaf.started)",
                "one.is_in((Mode.INITIALIZE, Mode.INITIALIZED, Mode.SNAPSHOT)))",
            ),
        ),
        (f"{_TRANSCRIPTS}[group_start_order]",),
    ),
    Bug(
        "A group that failed later stays consistent",
        "One machine's merge failed for good, and the others' leaves still promise a whole group.",
        (
            Edit(
                "controller/groups.py",
                "    has_failed_since = _has_failed(leaf, bounds) and not is_inconsistent(leaf.group_consistency)",
                "    has_failed_since = False",
            ),
        ),
        ("tests/pure/test_groups_judged.py::test_one_that_fails_for_good_later_marks_those_that_are_finished",),
    ),
    Bug(
        "A share is that of the greatest total",
        "The storage that was to get 40 MiB/s gets what the whole cluster may take, and its guests stand.",
        (
            Edit(
                "controller/bandwidths.py",
                "    return min((limit for limit in limits if limit), default=0)",
                "    return max((limit for limit in limits if limit), default=0)",
            ),
        ),
        (
            f"{_BANDWIDTHS}::test_what_is_given_never_adds_up_to_more_than_a_total_whatever_the_settings_were_before",
            f"{_TRANSCRIPTS}[bandwidth]",
        ),
    ),
    Bug(
        "What was given before the settings changed is not counted",
        "A total is lowered in the middle of the night, and until the morning twice as much is moved.",
        (
            Edit(
                "controller/budgets.py",
                "        return bool(share) and self._given[place]",
                "        return 0 > self._given[place]",
            ),
        ),
        (
            f"{_BANDWIDTHS}::test_what_is_given_never_adds_up_to_more_than_a_total_whatever_the_settings_were_before",
            f"{_BANDWIDTHS}::test_who_was_given_more_by_earlier_settings_makes_others_wait_and_they_are_told",
        ),
    ),
    Bug(
        "The agent goes by the plan alone",
        "Whatever the budgets say, every merge takes as much as it can get.",
        (
            Edit(
                "nodeagent/operations/survey.py",
                "            bandwidth=leaf.slowed(plan.bandwidth_merge),",
                "            bandwidth=plan.bandwidth_merge,",
            ),
        ),
        (
            "tests/pure/test_surveys.py::"
            "test_merge_and_retain_keep_to_what_the_leaf_was_given_where_that_is_less_than_the_plans",
        ),
    ),
    Bug(
        "A verdict on a group is written whoever acts by now",
        "A controller that stood still comes back, and says of a group that failed meanwhile that it is one instant.",
        (
            Edit(
                "controller/verdicts.py",
                "            return catalogue.tell(leaf, _written(verdict)) is Claim.WON",
                "            return catalogue.store.replace(leaf.dn, _written(verdict))",
            ),
        ),
        (
            "tests/slapd/test_two_controllers.py::"
            "test_a_verdict_that_was_on_its_way_when_the_lease_changed_hands_is_refused",
        ),
    ),
)
