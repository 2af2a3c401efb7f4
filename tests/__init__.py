"""Tests against the real thing: PostgreSQL, Hypercorn, processes, a browser; the files mirror services/goals."""
