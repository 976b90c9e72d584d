"""Counters for Prometheus, answered on the address from the settings; off by default.

Each daemon makes one `Metrics` and hands it to its cycle. Counting goes on without a listener, so no caller has to ask.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from vmkeep.contract.codes import ReturnValue
from vmkeep.contract.errors import Refused
from vmkeep.service.settings import MetricsSettings

_STEP_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 14400)


@dataclass(frozen=True)
class Metrics:
    """What is counted, in a registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    cycles: Counter = field(init=False)
    leaves: Gauge = field(init=False)
    claims: Counter = field(init=False)
    steps: Histogram = field(init=False)
    failures: Counter = field(init=False)
    silent: Gauge = field(init=False)
    waiting: Gauge = field(init=False)
    late: Gauge = field(init=False)
    spread: Gauge = field(init=False)
    broken_groups: Counter = field(init=False)
    broken_promises: Gauge = field(init=False)
    uncovered: Gauge = field(init=False)
    not_pruned: Gauge = field(init=False)

    def __post_init__(self) -> None:
        """Register everything once."""
        made = {
            "cycles": Counter("vmkeep_cycles", "Cycles that ended without an error", registry=self.registry),
            "leaves": Gauge("vmkeep_leaves", "Leaves in flight by mode", ["mode"], registry=self.registry),
            "claims": Counter("vmkeep_claims", "Claims by how they ended", ["outcome"], registry=self.registry),
            "steps": Histogram(
                "vmkeep_step_seconds", "Duration of steps", ["step"], buckets=_STEP_BUCKETS, registry=self.registry
            ),
            "failures": Counter(
                "vmkeep_failures", "Failed steps by return value", ["step", "return_value"], registry=self.registry
            ),
            "waiting": Gauge("vmkeep_waiting", "Leaves that wait for room or for their group", registry=self.registry),
            "late": Gauge("vmkeep_late", "Leaves whose window is over without a snapshot", registry=self.registry),
            "spread": Gauge(
                "vmkeep_group_spread_seconds", "Spread of a group's newest instants", ["group"], registry=self.registry
            ),
            "broken_groups": Counter(
                "vmkeep_broken_groups", "Groups that are not one instant", ["group"], registry=self.registry
            ),
            "silent": Gauge("vmkeep_silent_work", "Work that shows no progress for long", registry=self.registry),
            "broken_promises": Gauge(
                "vmkeep_broken_promises", "Machines without the good backup they are promised", registry=self.registry
            ),
            "uncovered": Gauge(
                "vmkeep_uncovered_machines", "Machines that no plan covers nor leaves out", registry=self.registry
            ),
            "not_pruned": Gauge(
                "vmkeep_machines_not_pruned",
                "Machines of which nothing old goes: their plan cannot be read, or a clock is wrong",
                registry=self.registry,
            ),
        }
        for name, metric in made.items():
            object.__setattr__(self, name, metric)

    def show_modes(self, modes: Iterable[str]) -> None:
        """Set how many leaves are in each mode; modes no leaf is in any more vanish."""
        self.leaves.clear()
        for mode in modes:
            self.leaves.labels(mode).inc()

    def count_failure(self, step: str, return_value: int) -> None:
        """One more step that failed; by its number, as the leaf shows it."""
        self.failures.labels(step, str(int(return_value))).inc()

    def listen(self, settings: MetricsSettings) -> None:
        """Answer GET /metrics where the settings say so."""
        if settings.listen is None:
            return
        host, _, port = settings.listen.rpartition(":")
        try:
            start_http_server(int(port), host.strip("[]"), registry=self.registry)
        except OSError as why:
            raise Refused(
                ReturnValue.UNSUPPORTED_PARAMETER,
                f"metrics.listen is {settings.listen}: cannot listen there: {why.strerror}; free it or choose another",
            ) from None
