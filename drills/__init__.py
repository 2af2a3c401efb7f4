"""Drills: the service is broken on purpose under load, and what its users notice is measured."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Of the project."""
