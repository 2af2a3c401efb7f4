"""Rules and dashboards as code, and the objectives they are made from."""
