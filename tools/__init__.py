"""What keeps the project in order: the linter of the manifests, audits, releases, and what the documents say."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Of the project."""
