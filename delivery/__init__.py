"""What stands between a commit and a cluster: vulnerabilities, licences, pinned actions, releases."""
