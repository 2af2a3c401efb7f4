"""Rules and dashboards as code, generated from the objectives."""
