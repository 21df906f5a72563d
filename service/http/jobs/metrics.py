"""Metrics of jobs. Those of the store survive a restart; photos count from the last start."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.http.jobs.runner import Jobs


class JobCollector(Collector):
    """Reads at each scrape how many jobs there are, how long they wait, and their bytes."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        totals = self._jobs.store.totals
        states = GaugeMetricFamily("deeplab_jobs", "Jobs by their state", labels=["state"])
        for state, count in totals.states.items():
            states.add_metric([state], count)
        oldest = totals.oldest_unfinished
        photos = CounterMetricFamily(
            "deeplab_job_photos", "Finished photos of jobs", labels=["result"]
        )
        for result, count in self._jobs.finished.items():
            photos.add_metric([result], count)
        yield from (states, photos)
        yield GaugeMetricFamily(
            "deeplab_jobs_oldest_seconds",
            "Age of the oldest unfinished job; 0 if there is none",
            0.0 if oldest is None else max(0.0, time.time() - oldest),
        )
        yield GaugeMetricFamily(
            "deeplab_jobs_bytes",
            "Bytes of all jobs on the disk",
            totals.bytes + self._jobs.arriving,
        )
        yield GaugeMetricFamily(
            "deeplab_jobs_bytes_limit",
            "The most bytes that jobs may have (--max-jobs-bytes)",
            self._jobs.settings.max_jobs_bytes,
        )
