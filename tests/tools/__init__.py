"""What stands between a commit and a cluster, against sources, repositories and files of the tests' own."""
