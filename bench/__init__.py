"""Measurements: the service's own speed, and the load test beside k6."""
