"""The load test: Locust, with scenarios as data, a client of its own, and verdicts."""
