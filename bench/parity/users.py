"""The scenario of the original Go app as a user in plain Python."""

from http import HTTPStatus

from locust import task

from loadtest.plugin import GoalsUser


class Visitor(GoalsUser):
    """A user without think time; any status but 200 is a failure."""

    @task
    def visit(self) -> None:
        self.check("endpoint was successful", self.client.get("/").status_code == HTTPStatus.OK)
