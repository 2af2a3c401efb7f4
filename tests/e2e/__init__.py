"""The page as people meet it: Chromium, Hypercorn and PostgreSQL, each the real one (`make e2e`)."""
