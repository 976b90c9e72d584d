"""Runs `vmkeep` as an admin does, against machines with two good backups each; for the tests of the command line."""

import os
import pty
import subprocess
from itertools import count

from lab.services import script
from tests.slapd.cluster_of_peers import LIMIT, ClusterOfPeers, Ended

OLD, NEW = "20260101T000000Z", "20260102T000000Z"
_numbers = count()


def new_machine(cluster: ClusterOfPeers) -> str:
    """A machine that no other test has."""
    name = f"m{next(_numbers)}"
    cluster.add_machines([name])
    for timestamp in (OLD, NEW):
        add_good(cluster, name, timestamp)
    return name


def add_good(cluster: ClusterOfPeers, name: str, timestamp: str) -> str:
    made = {"vmkeepSetDirectory": f"/backup/{name}/{timestamp}", "vmkeepManifestDigest": "blake3:0"}
    return cluster.add_leaf(name, timestamp, "finished", "20260103T000000Z", sstProvisioningReturnValue="0", **made)


def arguments(cluster: ClusterOfPeers, *more: str) -> list[str]:
    return ["--settings", str(cluster.settings_file("admin")), *more]


def vmkeep(cluster: ClusterOfPeers, *more: str) -> Ended:
    return cluster.run(*arguments(cluster, *more), program="vmkeep")


def at_a_terminal(cluster: ClusterOfPeers, typed: str, *more: str) -> tuple[int, str]:
    """Run at a terminal, and type at its question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [script("vmkeep"), *arguments(cluster, *more)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        os.write(ours, typed.encode())
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        return process.wait(LIMIT), shown.decode()
    finally:
        process.kill()
        os.close(ours)


def leaf(cluster: ClusterOfPeers, machine: str, timestamp: str = NEW) -> dict[str, list[str]]:
    return next(one for one in cluster.leaves(machine) if one["ou"] == [timestamp])


def mode(cluster: ClusterOfPeers, machine: str, timestamp: str = NEW) -> str:
    return leaf(cluster, machine, timestamp)["sstProvisioningMode"][0]


def exists(cluster: ClusterOfPeers, dn: str) -> bool:
    parent = dn.partition(",")[2]
    return any(one["dn"][0].casefold() == dn.casefold() for one in cluster.slapd.search(parent, scope="one"))
