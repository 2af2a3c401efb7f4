"""Tools for maintaining the project: the linter of the manifests, audits, releases, and checks of the documents."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The project's root folder."""
