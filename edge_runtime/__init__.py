"""What runs on the phone: two branches of a small model, steering, schedules and the wire."""
