"""Locust's own client on the scenario `original`: a locustfile with a summary like those of the other tools."""

import json
import os
from pathlib import Path

from locust import FastHttpUser, events, task
from locust.env import Environment


class Visitor(FastHttpUser):
    """A user without think time; any status but 200 is a failure."""

    @task
    def visit(self) -> None:
        with self.client.get("/", allow_redirects=False, catch_response=True) as response:
            if response.status_code != 200:
                response.failure("endpoint was not successful")


def write_summary(environment: Environment, **_: object) -> None:
    total = environment.stats.total
    duration = {
        name: float(total.get_response_time_percentile(share))
        for name, share in (("med", 0.5), ("p(95)", 0.95), ("p(99)", 0.99))
    }
    seconds = (total.last_request_timestamp or 0) - total.start_time
    metrics = {
        "http_req_duration": {"values": duration},
        "http_reqs": {"values": {"count": total.num_requests, "rate": total.num_requests / seconds}},
        "checks": {"values": {"rate": 1 - total.fail_ratio}},
    }
    document = {"metrics": metrics, "state": {"testRunDurationMs": seconds * 1000}}
    Path(os.environ["SUMMARY"]).write_text(json.dumps(document), encoding="utf-8")


events.quitting.add_listener(write_summary)
