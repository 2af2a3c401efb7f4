"""Compares k6 and the load test, in turns on the same targets: `python -m bench.parity.compare`."""
