"""Checks of the manifests as a system: `python -m tools.lint`."""
