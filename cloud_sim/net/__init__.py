"""Links, transports, traces and profiles of the network."""
