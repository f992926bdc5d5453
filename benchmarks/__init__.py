"""Speed on this machine, each figure with the command that made it."""
