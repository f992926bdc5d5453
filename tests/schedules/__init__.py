"""Schedules: the same tokens, whatever the line does."""
