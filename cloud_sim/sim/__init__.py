"""Virtual time: schedules, sessions and fleets in SimPy."""
