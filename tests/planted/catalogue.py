"""Every bug that is planted; read by the runner and by the reference."""

from tests.planted import of_files, of_groups, of_machines, of_the_directory

BUGS = (*of_files.BUGS, *of_machines.BUGS, *of_the_directory.BUGS, *of_groups.BUGS)
