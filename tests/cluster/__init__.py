"""The site on a real cluster: what no check of files can show. `make cluster-test` runs it."""
