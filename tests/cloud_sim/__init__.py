"""The far side: the real server, and what stands in for it."""
