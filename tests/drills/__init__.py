"""Drills: the service is broken on purpose under load, and what its users notice is measured."""
