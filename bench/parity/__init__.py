"""Compares k6 and the load test, alternating on the same targets: `python -m bench.parity.compare`."""
