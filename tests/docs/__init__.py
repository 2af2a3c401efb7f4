"""The documents against the tree, the code, and each program's own help; what is marked to run is run."""
