"""What the service counts, for Prometheus."""

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one service; nothing of them is global, so that two services of a process count apart."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("alignvl_requests", "Answered requests.", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "alignvl_request_seconds", "From request to answer.", ["route"], buckets=SECONDS, registry=self._registry
        )
        self.timeouts = Counter("alignvl_timeouts", "Requests that were given up.", registry=self._registry)
        self.batch = Histogram(
            "alignvl_batch_requests",
            "Requests that one call of the encoder answered.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )
        self._waiting = Gauge("alignvl_waiting_requests", "Requests in the queue.", registry=self._registry)
        self._rows = Gauge("alignvl_index_rows", "Rows of an index.", ["index", "gallery"], registry=self._registry)

    @contextmanager
    def timed(self, scope: MutableMapping[str, Any]) -> Iterator[list[int]]:
        """Count a request; the list takes its status. Routes are counted by their pattern, whatever was asked."""
        status: list[int] = []
        start = time.perf_counter()
        try:
            yield status
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._requests.labels(route, str(status[0]) if status else "none").inc()
            self._seconds.labels(route).observe(time.perf_counter() - start)

    def watch(self, waiting: Callable[[], int], rows: Callable[[], dict[tuple[str, str], int]]) -> None:
        """Ask these when the metrics are asked for."""
        self._waiting.set_function(waiting)
        self._rows_now = rows

    def text(self) -> bytes:
        """In Prometheus's text format."""
        self._rows.clear()
        for (index, gallery), count in self._rows_now().items():
            self._rows.labels(index, gallery).set(count)
        return generate_latest(self._registry)
