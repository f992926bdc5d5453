"""Decoding schedules as sans-IO generators: `actions` is the seam, `lockstep` the plainest."""
