"""Users in plain Python, as with plain Locust: `make load USERS=loadtest/scenarios/shoppers.py ARGS="-u 20 -t 20s"`."""

from http import HTTPStatus
from typing import ClassVar
from uuid import uuid4

from locust import between, tag, task

from loadtest.plugin import GoalsUser


class Reader(GoalsUser):
    """Reads the page, and sometimes the API's list."""

    weight = 3
    wait_time = between(0.5, 1.5)
    thresholds: ClassVar = {"http_req_duration{name:page}": ["p(95)<250"], "checks": ["rate>0.999"]}

    @task(5)
    def read_page(self) -> None:
        response = self.client.get("/", name="page")
        self.check("page is HTML", response.ok and "<h1" in response.text)

    @task
    @tag("api")
    def list_goals(self) -> None:
        with self.client.get("/api/v1/goals", catch_response=True) as response:
            if "goals" not in response.json():
                response.failure("the response is not a list of goals")


class Shopper(GoalsUser):
    """Adds goals and removes them again."""

    wait_time = between(0.5, 1.5)

    @task
    @tag("api")
    def add_and_remove(self) -> None:
        made = self.client.post("/api/v1/goals", json={"goal_name": f"Load test python {uuid4()}"}, name="add")
        if self.check("goal is created", made.status_code == HTTPStatus.CREATED):
            with self.client.rename_request("/api/v1/goals/[id]"):
                self.client.get(f"/api/v1/goals/{made.json()['id']}")
                self.client.delete(f"/api/v1/goals/{made.json()['id']}")
