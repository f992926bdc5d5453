"""Drivers of schedules in real time, over real sockets."""
