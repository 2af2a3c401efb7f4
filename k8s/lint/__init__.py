"""Checks of the manifests as a system: `python -m lint`, run from the folder k8s."""
