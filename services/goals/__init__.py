"""A goal tracker on PostgreSQL: a page, a JSON API and the endpoints its operators need."""

__version__ = "1.0.0"
