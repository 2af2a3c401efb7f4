"""What `make new` makes, tried out: services of other names and sizes, and the worked example."""
