"""Locust as a command against a scripted server; `make load-test` runs these."""
