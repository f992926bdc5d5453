"""Studies: what to run, over which links, how good it was, what it looks like."""
