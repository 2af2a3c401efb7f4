"""Check the manifests as one system: `python -m tools.lint`."""
