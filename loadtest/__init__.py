"""The load test: Locust with scenarios as data, its own HTTP client, and pass/fail verdicts."""
