"""The directory of scripted agents serves here too: for faults of the controller alone."""

from tests.slapd.conftest import cluster_of_peers

__all__ = ["cluster_of_peers"]
