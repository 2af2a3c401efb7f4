"""Drills: faults are injected into the service under load, and their effects on users are measured."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The project's root folder."""
