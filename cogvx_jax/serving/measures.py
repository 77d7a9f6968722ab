"""What a server counts, for Prometheus."""

import prometheus_client as prometheus

from cogvx_jax.serving.queue import Queue

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Measures:
    """Counters of one app, in a registry of its own: a process may have several apps."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "cogvx_http_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "cogvx_http_seconds", "Seconds to an answer's headers", ["route"], buckets=SECONDS, registry=self._registry
        )
        self._jobs = prometheus.Gauge("cogvx_jobs", "Jobs in the queue", ["status"], registry=self._registry)
        self._workers = prometheus.Gauge("cogvx_workers", "Workers seen of late", registry=self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request. `route` is a template: ids of jobs would make a line each."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, queue: Queue) -> bytes:
        """Of all, in Prometheus' format."""
        for status, count in queue.counts().items():
            self._jobs.labels(status).set(count)
        self._workers.set(len(queue.workers()))
        return prometheus.generate_latest(self._registry)


TYPE = prometheus.CONTENT_TYPE_LATEST
