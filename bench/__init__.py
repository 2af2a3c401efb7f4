"""Measurements of the service's speed, and of the load test compared with k6."""
