"""What needs Prometheus's and Grafana's own tools: run by `make observability`."""
